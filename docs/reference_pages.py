"""Parts of pages that are made of the code, for marks in them.

`<!-- fields: MODULE:CLASS -->`, `<!-- file: PATH.py -->`, `<!-- commands -->`.
"""

import inspect
import re
import types
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

MARK = re.compile(r"<!-- (fields: (?P<fields>[\w.]+:\w+)|file: (?P<file>[\w./-]+\.py)|commands) -->")
ROOT = Path(__file__).parents[1]


def filled(page: str) -> str:
    """The page with its marks replaced."""

    def replacement(mark: re.Match[str]) -> str:
        if mark["file"]:
            return f"```python\n{(ROOT / mark['file']).read_text('utf8')}```"
        return fields_table(mark["fields"]) if mark["fields"] else commands()

    return MARK.sub(replacement, page)


def fields_table(place: str) -> str:
    """The fields of a pydantic model as a table: name, type, default, description."""
    module, name = place.split(":")
    model = getattr(import_module(module), name)
    assert issubclass(model, BaseModel), place
    lines = ["| field | type | default | what |", "|---|---|---|---|"]
    for field_name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field)
        kind = f"`{_kind(field.annotation)}`".replace("|", "\\|")
        lines.append(f"| `{field_name}` | {kind} | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def commands() -> str:
    """Every command with its arguments and options, as its `--help` has them."""
    from glider.cli.main import COMMANDS, build

    parts = []
    for name in COMMANDS:
        command = typer.main.get_command(build(name)).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
        inside = getattr(command, "commands", None)
        if inside is None:
            parts.append(_command(f"glider {name}", command))
        else:
            parts.append(f"## glider {name}\n\n{_cell(command.help or '')}\n")
            parts += [_command(f"glider {name} {word}", one, "###") for word, one in inside.items()]
    return "\n".join(parts)


def _command(words: str, command: Any, mark: str = "##") -> str:
    lines = [f"{mark} {words}", "", inspect.getdoc(command.callback) or command.help or "", ""]
    given = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and "--help" not in one.opts]
    usage = " ".join([words, *(f"{_metavar(one)}" for one in given), *(["[OPTIONS]"] if options else [])])
    lines += ["```text", usage, "```", ""]
    if given or options:
        lines += ["| | | default |", "|---|---|---|"]
    for one in given:
        lines.append(f"| `{_metavar(one)}` | {_cell(getattr(one, 'help', None) or '')} | |")
    for one in options:
        names = " ".join(f"`{flag}`" for flag in [*one.opts, *one.secondary_opts])
        default = one.default if not callable(one.default) else None
        shown = f"`{_plain(default)}`" if default not in (None, False, (), []) and _is_plain(default) else ""
        lines.append(f"| {names} | {_cell(one.help or '')} | {shown} |")
    return "\n".join([*lines, ""])


def _metavar(argument: Any) -> str:
    return argument.metavar or argument.name.upper().rstrip("_")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | Enum | Path)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _default(field: Any) -> str:
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, BaseModel):
        return ""
    return "none" if value is None else f"`{value!r}`".replace("|", "\\|")


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin is Literal:
        return " | ".join(repr(value) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " | ".join(_kind(part) for part in get_args(annotation) if part is not type(None)) + (
            " | null" if type(None) in get_args(annotation) else ""
        )
    if origin is not None:
        inside = ", ".join("..." if part is Ellipsis else _kind(part) for part in get_args(annotation))
        return f"{origin.__name__}[{inside}]"
    return getattr(annotation, "__name__", str(annotation))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
