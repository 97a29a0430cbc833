"""`glider routers`: the methods and the global signals there are, from their registries."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glider.cli.arguments import JsonOption
from glider.cli.terminal import plain_table
from glider.registry import Entry
from glider.terminal import console, say, say_json

if TYPE_CHECKING:
    from rich.table import Table


def register(app: typer.Typer, name: str, text: str) -> None:
    app.command(name, help=text)(routers)


def routers(
    as_json: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the methods as a Markdown table, as in docs/routers.md.")
    ] = False,
    signals: Annotated[bool, typer.Option("--signals", help="List the global signals alone.")] = False,
) -> None:
    """List the methods and the global signals by name, with their paper, formula and settings."""
    rows = signal_rows() if signals else method_rows()
    if as_json:
        say_json(rows)
    elif signals:
        console().print(_table("global signal", rows))
    elif markdown:
        say(markdown_table(rows))
    else:
        console().print(_table("router", rows), "", _table("global signal", signal_rows()))


def _table(kind: str, rows: list[dict[str, Any]]) -> "Table":
    table = plain_table(kind, "paper", "what it does")
    for row in rows:
        table.add_row(row["name"], row["paper"] or "-", "\n".join(filter(None, (row["summary"], _settings(row)))))
    return table


def method_rows() -> list[dict[str, Any]]:
    """The row of every registered router."""
    from glider.routing.base import routers as registry

    return _rows(registry)


def signal_rows() -> list[dict[str, Any]]:
    """The row of every registered global signal."""
    from glider.routing.signals.base import signals

    return _rows(signals)


def _rows(registry: Iterable[Entry[Any]]) -> list[dict[str, Any]]:
    """Name, paper, first paragraph of the docstring and settings of every entry, with plain defaults."""
    rows = []
    for entry in registry:
        paragraph = inspect.cleandoc(entry.make.__doc__ or "").split("\n\n")[0]
        parameters = inspect.signature(entry.make).parameters
        settings = [name for name in parameters if name != "argument"]
        name = entry.name
        if (argument := parameters.get("argument")) is not None:
            name += ":NAME" if argument.default is inspect.Parameter.empty else "[:NAME]"
        row = {"name": name, "paper": entry.paper, "summary": " ".join(paragraph.split()), "settings": settings}
        rows.append(row | {"defaults": _defaults({setting: parameters[setting].default for setting in settings})})
    return rows


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The defaults that can be written down; of a selection its `top_k`."""
    from glider.routing.select import TopK

    select = values.get("select")
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
    return plain | ({"top_k": select.k} if isinstance(select, TopK) else {})


def _settings(row: dict[str, Any]) -> str:
    """The settings of a row in one line, with their defaults."""
    defaults = row["defaults"]
    names = ["top_k" if name == "select" and "top_k" in defaults else name for name in row["settings"]]
    return ", ".join(f"{name}={defaults[name]}" if name in defaults else name for name in names)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| router | paper | what it does | settings |", "|---|---|---|---|"]
    for row in rows:
        summary = row["summary"].replace("|", "\\|")
        settings = ", ".join(f"`{name}`" for name in row["settings"])
        lines.append(f"| `{row['name']}` | {row['paper'] or ''} | {summary} | {settings} |")
    return "\n".join(lines)
