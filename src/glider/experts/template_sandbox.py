"""Jinja for a stranger's chat template: its sandbox, with a bound on every text and on what all of them come to.

Jinja bounds neither: a line that doubles a text, run thirty times, is gigabytes. So what an operation gives is
estimated before it is done, from the sizes of what it takes, and counted. Filters that no chat needs are not there.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from string import Formatter
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LARGEST, MOST = 4_000_000, 128_000_000  # characters of one value, and of all that a rendering makes
_OF_INPUT, _OF_INPUT_IN_ALL = 16, 256  # times the characters of the conversation, beside them
_NODE = 64  # characters that each part of a list or dictionary counts, and each number
_WIDEST = 10_000  # characters of padding
_DEEPEST = 200
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")  # a tag of transformers' own, which marks
_PLAIN = (  # filters that give no more than they are given
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items"),
    *("last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select"),
    *("selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper", "wordcount", "e", "escape", "safe"),
)
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")


class TooLarge(BaseException):
    """A text beyond the bound; past all the `except Exception` on the way."""


class Budget:
    """Characters that a rendering may still make."""

    def __init__(self, characters: int):
        self.largest = LARGEST + _OF_INPUT * characters
        self.left = MOST + _OF_INPUT_IN_ALL * characters

    def spend(self, count: int) -> None:
        """Count characters; raises `TooLarge` where they are too many."""
        self.left -= count
        if count > self.largest or self.left < 0:
            raise TooLarge

    def size(self, value: Any) -> int:
        """Characters of a value as text, as a tree: a list that holds another twice counts it twice."""
        total, waiting = 0, [(value, 0)]
        while waiting:
            one, depth = waiting.pop()
            total += len(one) if isinstance(one, str | bytes) else _NODE
            if isinstance(one, int) and not isinstance(one, bool):
                total += one.bit_length() // 3
            parts: Collection[Any] = ()
            if isinstance(one, Mapping):
                parts = [*one.keys(), *one.values()]
            elif isinstance(one, Namespace):
                parts = list(one._Namespace__attrs.values())  # pyright: ignore[reportAttributeAccessIssue]
            elif isinstance(one, Collection) and not isinstance(one, str | bytes | range):
                parts = one
            if total + len(parts) > self.largest or depth > _DEEPEST:
                raise TooLarge
            waiting.extend((part, depth + 1) for part in parts)
        return total


_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budgeted(turns: Sequence[Mapping[str, Any]]) -> Iterator[Budget]:
    """Bound what is rendered inside the block by the size of the conversation."""
    characters = sum(len(text) for turn in turns for text in turn.values() if isinstance(text, str))
    budget = Budget(characters)
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


@functools.lru_cache(maxsize=64)
def compiled(source: str) -> Any:
    """A template, ready to be rendered inside a `budgeted` block."""
    scoped = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endwith' if tag[2] else 'with'} {tag[3]}%}}", source)
    return _environment().from_string(scoped)


def _spend(*values: Any, times: int = 1, beside: int = 0) -> None:
    """Count what an operation gives, which is at most as large as this."""
    budget = _budget.get()
    budget.spend(times * sum(map(budget.size, values)) + beside)


class _Concat(NodeTransformer):
    """Lets `a ~ b` be a filter, which is bounded as the others are."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (Jinja's name)
        parts = nodes.List([self.visit(part) for part in node.nodes], lineno=node.lineno)
        return nodes.Filter(parts, "joined", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers' chat templates, bounded."""

    intercepted_binops = frozenset({"+", "%", "*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Concat().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**"):
            _check_product(operator, left, right)
        elif operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        elif operator == "+":
            _spend(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        args = tuple(map(_whole, args))
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes):
            _check_method(owner, name, args, kwargs)
        elif isinstance(owner, int | float):
            raise TooLarge  # `to_bytes`
        elif __obj in (__self.globals["dict"], __self.globals["namespace"]):
            _spend(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        bare = super().wrap_str_format(value)
        if bare is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            _check_fields(value.__self__, args, kwargs)
            return bare(*args, **kwargs)

        return formatted

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a macro or a block writes."""
        parts = list(parts)
        _budget.get().spend(sum(map(len, parts)))
        return "".join(parts)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"], finalize=_output
    )
    known = environment.filters
    bounded: dict[str, Callable[..., Any]] = {name: _counted(known[name]) for name in _PLAIN}
    bounded |= {"joined": _joined, "join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson}
    bounded |= {"format": _format, "batch": _grouped(known["batch"]), "slice": _grouped(known["slice"])}
    environment.filters = bounded
    environment.globals = {
        "range": environment.globals["range"],
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
        "raise_exception": _raise,
        "strftime_now": _now,
    }
    return environment


def _output(value: Any) -> Any:
    if not isinstance(value, str):
        _spend(value)
    return value


def _whole(value: Any) -> Any:
    """What a filter gives piece by piece, in one list, so that it can be measured."""
    return list(value) if isinstance(value, Iterator) else value


def _counted(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def counted(*args: Any, **kwargs: Any) -> Any:
        args = tuple(map(_whole, args))
        first = 1 if hasattr(plain, "jinja_pass_arg") else 0
        _spend(*args[first:], *kwargs.values(), times=2)
        return plain(*args, **kwargs)

    return counted


def _grouped(plain: Callable[..., Any]) -> Callable[..., Any]:
    def grouped(value: Any, count: int, fill_with: Any = None) -> Any:
        value = _whole(value)
        _check_width(count)
        _spend(value, beside=count * (1 + _budget.get().size(fill_with)))
        return list(plain(value, count, fill_with))

    return grouped


def _joined(parts: list[Any]) -> str:
    _spend(parts)
    return "".join(map(str, parts))


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    parts = list(value)
    if attribute is not None:
        environment = _environment()
        parts = [environment.getitem(part, attribute) for part in parts]
    _spend(parts, beside=len(str(d)) * len(parts))
    return str(d).join(map(str, parts))


def _replace(s: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(_output(s))
    _check_replacement(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, str):
        _check_width(width)
        width = " " * width
    s = str(s)
    lines = s.splitlines(keepends=True)
    _spend(s, beside=len(width) * (len(lines) + 1))
    text = "".join(line if i == 0 or not (line.strip() or blank) else width + line for i, line in enumerate(lines))
    return width + text if first else text


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    width = len(indent) if isinstance(indent, str) else indent or 0
    _check_width(width)
    parts = _budget.get().size(x) // _NODE + 1
    between = sum(len(str(part)) for part in separators or ())
    _spend(x, times=6, beside=parts * (between + width * min(parts, _DEEPEST)) if width or between else 0)
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    text = str(value)
    _check_percent(text, kwargs or args)
    return text % (kwargs or args)


def _check_method(owner: str | bytes, name: str, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Count what a method of a text gives, or raise `TooLarge` for one that may give anything."""
    if name == "replace":
        _check_replacement(owner, *args[:2])
    elif name == "join":
        parts = args[0] if args else ()
        _spend(parts, beside=len(owner) * len(parts))
    elif name == "translate":
        raise TooLarge
    else:
        width = 0
        if name in _PADDING:
            for number in (*args, *kwargs.values()):
                if isinstance(number, int):
                    _check_width(number)
                    width = max(width, number)
        _spend(owner, times=3, beside=width * (owner.count("\t") + 1 if isinstance(owner, str) else 1))  # ß is SS


def _check_product(operator: str, left: Any, right: Any) -> None:
    """Count what a product or power gives: a text so many times, or a number of so many digits."""
    for one, times in ((left, right), (right, left)):
        if operator == "*" and isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
            return _spend(one, times=max(0, times))
    if isinstance(left, int) and isinstance(right, int):
        digits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
        if digits > _WIDEST:
            raise TooLarge
    return None


def _check_fields(text: str, args: tuple, kwargs: Mapping[str, Any]) -> None:
    fields = 0
    for _, field, width, _ in Formatter().parse(text):
        if "{" in (width or ""):
            raise TooLarge
        _check_digits(width or "")
        fields += field is not None
    _spend(text, beside=fields * (_budget.get().size([args, dict(kwargs)]) + _WIDEST))


def _check_replacement(text: Any, old: Any, new: Any) -> None:
    times = text.count(old) if len(old) else len(text) + 1
    _spend(text, beside=times * len(new))


def _check_percent(text: str, values: Any) -> None:
    if "*" in text:
        raise TooLarge
    _check_digits(text)
    _spend(text, beside=text.count("%") * (_budget.get().size(values) + _WIDEST))


def _check_digits(text: str) -> None:
    if any(int(number) > _WIDEST for number in re.findall(r"[0-9]{1,9}", text)):
        raise TooLarge


def _check_width(width: Any) -> None:
    if not isinstance(width, int) or width > _WIDEST:
        raise TooLarge


class _Namespace(Namespace):
    """Names that a template sets; none of Python's own."""

    def __init__(*args: Any, **kwargs: Any):
        names = dict(*args[1:], **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a name that begins with an underscore: {name}")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    if len(form) > _WIDEST:
        raise TooLarge
    _check_digits(form)
    return datetime.now().strftime(form)
