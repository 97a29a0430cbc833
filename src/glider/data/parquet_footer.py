"""How many items the lists of a Parquet file have, as its footer says.

pyarrow knows it too, but ends the process where a column's statistics do not fit its schema. So the footer is looked
through here, in Thrift's compact form, for this alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from glider.files.opening import UnfitFile, opened, read_exactly

_END = 8  # bytes after the footer: its length, and PAR1
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _TEXT, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_DEEPEST = 32  # Parquet's own need five
_GROUPS, _COLUMNS, _OF_COLUMN, _COUNT = 4, 1, 3, 5  # fields: a file's groups, their columns, of these the values


def values_of_columns(path: Path, columns: int) -> list[list[int]]:
    """The number of values of each of so many columns, by group of rows; `UnfitFile` where no footer says so."""
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(read_exactly(descriptor, max(0, size - _END), min(size, _END))[:4], "little")
        if length > size - _END:
            raise UnfitFile(f"a footer of {length} bytes in a file of {size}")
        footer = bytes(read_exactly(descriptor, size - _END - length, length))
    try:
        groups = _Footer(footer).groups()
    except IndexError as fault:
        raise UnfitFile("a footer that is cut short") from fault
    if other := [len(group) for group in groups if len(group) != columns]:
        raise UnfitFile(f"a group of {other[0]} columns, where {columns} are due")
    return groups


class _Footer:
    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def groups(self) -> list[list[int]]:
        """The numbers of values by group; `IndexError` where the text ends before."""
        groups = []
        for field, kind in self._fields():
            if (field, kind) == (_GROUPS, _LIST):
                groups = [self._columns() for _ in self._structs()]
            else:
                self._skip(kind, 0)
        return groups

    def _columns(self) -> list[int]:
        columns = []
        for field, kind in self._fields():
            if (field, kind) == (_COLUMNS, _LIST):
                columns = [self._number_in(_OF_COLUMN) for _ in self._structs()]
            else:
                self._skip(kind, 0)
        return columns

    def _number_in(self, holder: int) -> int:
        """The number of values in a struct that is a field of this one, of a column."""
        number = 0
        for field, kind in self._fields():
            if (field, kind) == (holder, _STRUCT):
                for inner, inner_kind in self._fields():
                    if inner == _COUNT and _BYTE < inner_kind < _DOUBLE:
                        number = self._signed()
                    else:
                        self._skip(inner_kind, 0)
            else:
                self._skip(kind, 0)
        return number

    def _structs(self) -> range:
        """The items of a list of structs, which begins here."""
        count, kind = self._items()
        if count and kind != _STRUCT:
            raise UnfitFile("a footer of another form")
        return range(count)

    def _fields(self) -> Iterator[tuple[int, int]]:
        """The numbers and kinds of a struct's fields; whoever takes one reads or skips its value."""
        field = 0
        while (head := self._byte()) != _STOP:
            field = field + (head >> 4) if head >> 4 else self._signed()
            yield field, head & 15

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise UnfitFile("a footer of too deep nesting")
        if kind in (_TRUE, _FALSE):
            return  # a field's truth is in its kind
        if kind == _BYTE:
            self._byte()
        elif _BYTE < kind < _DOUBLE:
            self._varint()
        elif kind == _DOUBLE:
            self._move(8)
        elif kind == _TEXT:
            self._move(self._varint())
        elif kind in (_LIST, _SET):
            count, item = self._items()
            for _ in range(count):
                self._skip_item(item, depth)
        elif kind == _MAP:
            if count := self._varint():
                kinds = self._byte()
                for _ in range(count):
                    self._skip_item(kinds >> 4, depth)
                    self._skip_item(kinds & 15, depth)
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        else:
            raise UnfitFile(f"a footer with a value of the unknown kind {kind}")

    def _skip_item(self, kind: int, depth: int) -> None:
        self._skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)

    def _items(self) -> tuple[int, int]:
        head = self._byte()
        return (self._varint() if head >> 4 == 15 else head >> 4), head & 15

    def _signed(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 0x80:
            number, shift = number | (byte & 0x7F) << shift, shift + 7
            if shift > 63:
                raise UnfitFile("a footer with a number of more than 64 bits")
        return number | byte << shift

    def _byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def _move(self, length: int) -> None:
        self.place += length
        if self.place > len(self.content):
            raise IndexError
