"""What a report says in words, the same in every format."""

from typing import get_args

from glider.report.by_task import TaskLine
from glider.report.cells import Place
from glider.report.chance import Standing
from glider.report.contents import Report
from glider.report.report_plan import MethodView
from glider.report.tables import Column, Table, Value

INTRODUCTION = (
    "A pool holds experts: small adapters (LoRA) of one language model, each trained on a task of its own, by whoever "
    "had the data. A router decides which of them work on a query, token by token, layer by layer, so that nobody has "
    "to say which expert is the right one. Held-in tasks have an expert of their own in the pool: there a router "
    "should find it. Held-out tasks have none: there it should make the best of the others. All scores are "
    "percentages, and more is better."
)
CHANCE = (
    "Guessing is the better of a random choice and of always giving the commonest answer. A task is at chance if none "
    "of the methods of the first table is above that (one-sided binomial test, 5 %, Holm's correction over the "
    "methods, each with all its runs); where even right answers to every row would not be, the rows are too few to "
    "tell. Tasks of both kinds stay in the averages; the columns “above chance” leave them out. Tasks with open "
    "answers, which nobody guesses, are always in."
)
FIGURES = {
    "routing": (
        "Where tokens go",
        "Each panel is a task. A row is a place in the network: the parts of its layers are named on the left, and in "
        "each part the layers go from the first at the top to the last at the bottom (numbers on the right). A column "
        "is an expert, and the colour how much of that place's work the expert does. The dashed box is the expert "
        "trained on this very task: a bright column inside it means that the router found it.",
    ),
    "scores": (
        "How well each expert suits each task",
        "Each column is a task, each dot an expert; the higher, the better the expert suits the task's queries as a "
        "whole. The diamond is the expert trained on the task. Above the red line the router trusts the best expert, "
        "below it every token chooses for itself. Good scores put diamonds above the line, and everything in tasks "
        "without an expert below it; hollow points show tasks as if their expert were not in the pool.",
    ),
}


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "missing" if share is None else f"{100 * share:.1f}"


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # no minus before a zero


def p_text(value: float) -> str:
    """A p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def lacking(value: Value) -> str:
    """What stands where a number does not."""
    if not value.missing:
        return "-"  # the method has no part in the column
    if not value.tasks:
        return "missing"
    return f"missing ({len(value.missing)} of {value.tasks + len(value.missing)} tasks)"


def marked(method: MethodView) -> str:
    """A method's name, with a sign where it knows more than a router may."""
    return method.label + (" †" if method.bound else "")


def heading(column: Column) -> str:
    """A column's title with its number of tasks."""
    return f"{column.title} ({len(column.places)})"


def details(value: Value) -> list[list[str]]:
    """What is known of a number, what belongs together in one list: `64.1 to 71.9`; `+6.0 [+1.2 to +9.9]` and
    `p = 0.012`; `runs 67.0, 69.0`."""
    assert value.interval is not None
    parts = [[f"{percent(value.interval[0])} to {percent(value.interval[1])}"]]
    if value.difference is not None and value.difference_interval is not None and value.p_holm is not None:
        low, high = map(_signed, value.difference_interval)
        parts.append([f"{_signed(value.difference)} [{low} to {high}]", p_text(value.p_holm)])
    if value.runs:
        parts.append([f"runs {', '.join(map(percent, value.runs))}"])
    return parts


def reading(table: Table, first: bool) -> str:
    """How to read a table; the first of a report explains what the others have in common."""
    if not first:
        return (
            "" if table.reference is None else f"Read as the first table; differences and p are to {table.reference}."
        )
    text = (
        "Each number is the mean over the tasks of its column (their count is in the heading), with its 95 % "
        "interval: how far it would move with other tasks of the kind and other rows (two-level bootstrap). Bold: the "
        "best of its column."
    )
    if any(line.method.bound for line in table.lines):
        text += " Methods marked † know more than a router may, and are never the best."
    if any(value.score is None and not value.missing for line in table.lines for value in line.values):
        text += " A dash: the method was not evaluated there."
    if table.reference is None:
        return text
    return text + (
        f" Then the difference to {table.reference} with the interval of the same kind, and p: how likely chance alone "
        "makes such a difference on the same tasks (paired permutation test of the rows, Holm's correction over the "
        "methods of the column); * where p < 0.05."
    )


def legend(table: Table) -> str:
    """What the signs of the picture above a table mean."""
    text = "The numbers of the table below as points, their 95 % intervals as bars. Coloured: the best of its column."
    if any(line.method.bound for line in table.lines):
        text += " Hollow: methods marked †."
    return text + ("" if table.reference is None else f" Dashed line: {table.reference}.")


def place_text(place: Place) -> str:
    """`set/task`."""
    return "/".join(place)


def guess_text(line: TaskLine) -> str:
    """What guessing gives on a task."""
    if line.guess is None:
        return "open"
    return percent(line.guess) + (f" ({line.standing})" if line.standing != "above chance" else "")


def chance_lists(report: Report) -> list[str]:
    """The tasks at chance, and those of too few rows to tell."""
    texts = []
    for name in get_args(Standing):
        places = ", ".join(place_text(place) for place, standing in report.chance.items() if standing == name)
        if places:
            texts.append(f"{name[0].upper()}{name[1:]}: {places}.")
    return texts or ["There are none."]


WORDS = (chance_lists, details, guess_text, heading, lacking, legend, marked, percent, place_text, reading)
