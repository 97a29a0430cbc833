"""A report as Markdown."""

from collections.abc import Sequence

from glider.report.by_task import ByTask, told_by_reason
from glider.report.contents import Report
from glider.report.tables import Table, Value
from glider.report.wording import (
    CHANCE,
    INTRODUCTION,
    chance_lists,
    details,
    guess_text,
    heading,
    lacking,
    percent,
    place_text,
    reading,
)


def write(report: Report) -> str:
    """The whole report."""
    parts = [f"# {_plain(report.title)}", report.intro, INTRODUCTION]
    for number, table in enumerate(report.tables, start=1):
        parts += [f"## Table {number}: {_plain(table.title)}", table.note, reading(table, number == 1)]
        parts += [_table(table), _notes(table)]
    for number, picture in enumerate(report.pictures, start=1):
        title = _plain(picture.title)
        parts += [f"## Figure {number}: {title}", picture.caption, f"![{title}]({picture.light.name})"]
    parts += ["## Tasks at chance", CHANCE, *chance_lists(report)]
    parts.append("## Task by task")
    parts += [_by_task(one) for one in report.tasks]
    parts += ["## Missing", _missing(report), "## Made with"]
    parts.append("\n".join(f"- {name}: {', '.join(values)}" for name, values in report.made_with.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    rows = [
        [_plain(line.method.label) + (" †" if line.method.bound else ""), *map(_value, line.values)]
        for line in table.lines
    ]
    return _grid(["method", *map(heading, table.columns)], rows)


def _value(value: Value) -> str:
    if value.score is None:
        return lacking(value)
    score = percent(value.score)
    shown = f"**{score}**" if value.best else score
    star = "\\*" if value.significant else ""
    return f"{shown}{star} ({', '.join(text for together in details(value) for text in together)})"


def _notes(table: Table) -> str:
    return "\n".join(
        f"- {_plain(line.method.label)}: {_plain(line.method.note)}" for line in table.lines if line.method.note
    )


def _by_task(one: ByTask) -> str:
    rows = [
        [
            *(_plain(line.place[1]), str(line.rows), guess_text(line)),
            *("missing" if score is None else percent(score) for score in line.scores),
        ]
        for line in one.lines
    ]
    return f"### {_plain(one.title)}\n\n" + _grid(["task", "rows", "guessing", *map(_plain, one.methods)], rows)


def _missing(report: Report) -> str:
    if not report.lacks:
        return "Nothing."
    told = told_by_reason(report.lacks)
    return "\n".join(
        f"- {_plain(method)}: {', '.join(map(place_text, places))} ({_plain(reason)})"
        for method, reason, places in told
    )


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A text of the user's that must not become markup."""
    for sign in "\\|*_<>`[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
