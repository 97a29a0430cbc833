"""Rows of Parquet files: of those that lie here, and the first ones of those that lie on the hub."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fullrun.hub import Hub, HubFile
from fullrun.readers import HubRow
from glider.errors import DataError, MissingDependency


class ParquetRows(Sequence[HubRow]):
    """The rows of files one after the other, mapped, each read when it is asked for.

    Raises `DataError` for a file that is no whole Parquet file, which is removed, so that it is fetched anew.
    """

    def __init__(self, files: Sequence[Path]):
        arrow, _ = _arrow()
        self._table = arrow.concat_tables([_table(file) for file in files], promote_options="default")

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._table.slice(place, 1).to_pylist()[0]


def first_rows(hub: Hub, files: Sequence[HubFile], most: int) -> list[HubRow]:
    """At most so many rows from the beginning; of a file only its end and the row groups that hold them are fetched."""
    rows: list[HubRow] = []
    for file in files:
        if len(rows) < most:
            rows += _first(hub, file, most - len(rows))
    return rows


def _first(hub: Hub, file: HubFile, most: int) -> list[HubRow]:
    arrow, parquet = _arrow()
    rows: list[HubRow] = []
    try:
        opened = parquet.ParquetFile(hub.open(file))
        for group in range(opened.num_row_groups):
            if len(rows) < most:
                rows += opened.read_row_group(group).slice(0, most - len(rows)).to_pylist()
    except (arrow.ArrowException, OSError) as fault:
        where = f"{file.repository}/{file.path}"
        raise DataError(f"a whole Parquet file at {where}", _short(fault), "Check it on the hub.") from fault
    return rows


def batches_of(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Sequence[HubRow]]:
    """Some columns of files that lie here, some thousand rows at a time."""
    arrow, parquet = _arrow()
    for file in files:
        try:
            opened = parquet.ParquetFile(file)
            if lacking := [name for name in columns if name not in opened.schema_arrow.names]:
                got = f"no {', '.join(lacking)} among {', '.join(opened.schema_arrow.names[:12])}"
                raise DataError(f"the documented columns in {file}", got, "The data set changed.")
            for batch in opened.iter_batches(8192, columns=list(columns)):
                yield batch.to_pylist()
        except (arrow.ArrowException, OSError) as fault:
            file.unlink(missing_ok=True)
            raise DataError(
                f"a whole Parquet file at {file}", _short(fault), "The same command fetches it anew."
            ) from fault


def _table(file: Path) -> Any:
    arrow, parquet = _arrow()
    try:
        return parquet.read_table(file, memory_map=True)
    except (arrow.ArrowException, OSError) as fault:
        file.unlink(missing_ok=True)
        remedy = "The same command fetches it anew."
        raise DataError(f"a whole Parquet file at {file}", _short(fault), remedy) from fault


def _short(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:300]


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingDependency("pyarrow", "read data sets", "pip install 'glider-moe[eval]'") from None
    return pyarrow, parquet
