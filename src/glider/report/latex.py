"""A report's tables for a paper: LaTeX with booktabs."""

from glider.report.contents import Report
from glider.report.tables import Table, Value
from glider.report.wording import CHANCE, details, heading, lacking, percent, reading

_SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"$^\dagger$",
    "“": "``",
    "”": "''",
}


def write(report: Report) -> str:
    """All tables, and the figures' `includegraphics`; needs booktabs and graphicx."""
    parts = ["% \\usepackage{booktabs,graphicx}"]
    parts += [_table(table, number == 1) for number, table in enumerate(report.tables, start=1)]
    for picture in report.pictures:
        caption = f"\\textbf{{{_plain(picture.title)}.}} {_plain(picture.caption)}"
        lines = [
            "\\begin{figure}[t]",
            "\\centering",
            f"\\includegraphics[width=\\linewidth]{{{picture.light.name}}}",
            f"\\caption{{{caption}}}",
            f"\\label{{fig:{picture.light.stem}}}",
            "\\end{figure}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _table(table: Table, first: bool) -> str:
    heads = " & ".join(["Method", *(_heading(heading(column)) for column in table.columns)])
    rows = [
        " & ".join([_plain(line.method.label + (" †" if line.method.bound else "")), *map(_value, line.values)])
        for line in table.lines
    ]
    texts = [table.note, reading(table, first)]
    texts += [CHANCE] if first and any(column.without_chance for column in table.columns) else []
    texts += [f"{line.method.label}: {line.method.note}." for line in table.lines if line.method.note]
    caption = " ".join([f"\\textbf{{{_plain(table.title)}.}}", *(_plain(text) for text in texts if text)])
    return "\n".join(
        [
            "\\begin{table}[t]",
            "\\centering\\small",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{table.key.replace('_', '-')}}}",
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",  # a narrow table keeps its size
            f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            "\\toprule",
            f"{heads} \\\\",
            "\\midrule",
            *(f"{row} \\\\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
        ]
    )


def _heading(text: str) -> str:
    """In two lines where a comma parts it."""
    first, _, second = text.partition(", ")
    stacked = f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{_plain(first)},\\\\{_plain(second)}\\end{{tabular}}"
    return stacked if second else _plain(text)


def _value(value: Value) -> str:
    if value.score is None or value.interval is None:
        return f"\\textit{{{_plain(lacking(value))}}}"
    score = f"\\textbf{{{percent(value.score)}}}" if value.best else percent(value.score)
    star = "$^{*}$" if value.significant else ""
    small = "\\\\".join(f"{{\\tiny {_plain(', '.join(together))}}}" for together in details(value))
    return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{score}{star}\\\\{small}\\end{{tabular}}"


def _plain(text: str) -> str:
    """A text that must not become commands."""
    return "".join(_SIGNS.get(sign, sign) for sign in " ".join(text.split()))
