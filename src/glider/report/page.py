"""A report as one HTML page that needs nothing but itself, light or dark as its reader's screen."""

import base64
from html import escape

from glider.report.by_task import ByTask, told_by_reason
from glider.report.contents import Picture, Report
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

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2129; --soft: #5b6472; --line: #dde1e8; --mark: #eef4fc;
  --own: #0b61c4; --lack: #a33; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181e; --ink: #e6e8ec; --soft: #9aa4b2; --line: #333a45;
  --mark: #1d2a3b; --own: #6cb2ff; --lack: #ff8a80; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; margin: 0 auto;
  max-width: 96rem; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 52rem; margin: .5rem 0; } .soft, small { color: var(--soft); }
small { display: block; font-size: .75rem; }
td small { white-space: nowrap; }
td:first-child small { white-space: normal; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: .85rem; } th:first-child, td:first-child { text-align: left; min-width: 8rem; max-width: 13rem; }
thead th { border-bottom: 2px solid var(--ink); } .best { background: var(--mark); } .best b { color: var(--own); }
.lack { color: var(--lack); font-style: italic; font-size: .85rem; } img { max-width: 100%; height: auto; }
figure { margin: .8rem 0; } details { margin: .8rem 0; } summary { cursor: pointer; }
"""


def write(report: Report) -> str:
    """The whole page."""
    parts = [f"<h1>{escape(report.title)}</h1>"]
    parts += [f"<p>{escape(text)}</p>" for text in (report.intro, INTRODUCTION) if text]
    for number, table in enumerate(report.tables, start=1):
        parts += [f"<h2>Table {number}: {escape(table.title)}</h2>", _table(table, number == 1)]
    for number, picture in enumerate(report.pictures, start=1):
        parts += [f"<h2>Figure {number}: {escape(picture.title)}</h2>", _picture(picture)]
    parts += ["<h2>Tasks at chance</h2>", *(f"<p>{escape(text)}</p>" for text in (CHANCE, *chance_lists(report)))]
    parts += ["<h2>Task by task</h2>", *(_by_task(one) for one in report.tasks)]
    parts += ["<h2>Missing</h2>", _missing(report), "<h2>Made with</h2>"]
    made = "; ".join(f"{name} {', '.join(values)}" for name, values in report.made_with.items())
    parts.append(f'<p class="soft">{escape(made)}</p>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(table: Table, first: bool) -> str:
    heads = "".join(f"<th>{escape(heading(column))}</th>" for column in table.columns)
    rows = []
    for line in table.lines:
        name = escape(line.method.label) + (" †" if line.method.bound else "")
        note = f"<small>{escape(line.method.note)}</small>" if line.method.note else ""
        rows.append(f"<tr><td>{name}{note}</td>{''.join(map(_value, line.values))}</tr>")
    return (
        f"<p>{escape(table.note)}</p>\n"
        f'<div class="wide"><table><thead><tr><th>method</th>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f'\n</tbody></table></div>\n<p class="soft">{escape(reading(table, first))}</p>'
    )


def _value(value: Value) -> str:
    if value.score is None:
        told = ", ".join(map(place_text, value.missing))
        return f'<td class="lack" title="{escape(told)}">{escape(lacking(value))}</td>'
    score = percent(value.score) + ("*" if value.significant else "")
    shown = f"<b>{score}</b>" if value.best else score
    small = "".join(f"<small>{escape(text)}</small>" for together in details(value) for text in together)
    marked = ' class="best"' if value.best else ""
    return f"<td{marked}>{shown}{small}</td>"


def _picture(picture: Picture) -> str:
    light, dark = (base64.b64encode(path.read_bytes()).decode() for path in (picture.light, picture.dark))
    return (
        f"<p>{escape(picture.caption)}</p>\n<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img src="data:image/png;base64,{light}" alt="{escape(picture.title)}"></picture></figure>'
    )


def _by_task(one: ByTask) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("rows", "guessing", *one.methods))
    rows = []
    for line in one.lines:
        scores = "".join(
            '<td class="lack">missing</td>' if score is None else f"<td>{percent(score)}</td>" for score in line.scores
        )
        head = f"<td>{escape(line.place[1])}</td><td>{line.rows}</td><td>{escape(guess_text(line))}</td>"
        rows.append(f"<tr>{head}{scores}</tr>")
    return (
        f"<details><summary>{escape(one.title)}: {len(one.lines)} tasks</summary>\n"
        f'<div class="wide"><table><thead><tr><th>task</th>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div></details>"
    )


def _missing(report: Report) -> str:
    if not report.lacks:
        return "<p>Nothing.</p>"
    items = [
        f"<li><b>{escape(method)}</b>: {escape(', '.join(map(place_text, places)))} "
        f'<span class="soft">({escape(reason)})</span></li>'
        for method, reason, places in told_by_reason(report.lacks)
    ]
    return "<ul>\n" + "\n".join(items) + "\n</ul>"
