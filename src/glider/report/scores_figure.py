"""The global scores of every task as a picture (GLIDER, figure 3)."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from glider.printable import printable
from glider.report.global_scores import PoolScores, TaskScores
from glider.report.style import LIGHT, Palette, apply_palette, require_area, save, start

MOST = 28  # columns side by side


def draw_scores(scores: PoolScores, path: Path, colours: Palette = LIGHT) -> Path:
    """Draw every task as a column: each expert's mean score a point, the task's own expert marked, p a line.

    Thin bars hold the middle 80 % of a task's queries: for the own expert, for the best score without it (hollow), and
    for the best score of a task that has none. Many tasks make several panels, broken between groups where that is
    possible. Raises `MissingDependency` without matplotlib.
    """
    pyplot = start("draw the scores")
    rows = _rows(scores.tasks)
    most = max(map(len, rows))
    width, height = max(6.4, 1.7 + 0.31 * most), 5.0 if len(rows) == 1 else 0.6 + 3.3 * len(rows)
    require_area(width, height)
    figure, panels = pyplot.subplots(len(rows), figsize=(width, height), sharey=True, squeeze=False)
    for axes, row in zip(panels[:, 0], rows, strict=True):
        _draw_row(axes, row, scores.p, colours)
        axes.set_xlim(-0.7, most - 0.3)
    figure.supylabel("global score (mean over a task's queries)", fontsize=9, color=colours.ink)
    _add_legend(figure, scores, colours, 2 if width < 8 else 4)
    apply_palette(figure, colours)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / height))
    return save(pyplot, figure, path)


def _rows(tasks: Sequence[TaskScores]) -> list[list[TaskScores]]:
    """Tasks of each panel: groups side by side while they fit; a group that fits in none is broken."""
    rows: list[list[TaskScores]] = [[]]
    for _, members in groupby(tasks, key=lambda task: task.group):
        group = list(members)
        if rows[-1] and len(rows[-1]) + len(group) > MOST:
            rows.append([])
        while len(group) > MOST:
            rows[-1], group = group[:MOST], group[MOST:]
            rows.append([])
        rows[-1] += group
    return rows


def _draw_row(axes: Any, tasks: Sequence[TaskScores], p: float, colours: Palette) -> None:
    axes.axhline(p, color=colours.line, lw=1.4, zorder=2)
    for column, task in enumerate(tasks):
        _draw_task(axes, column, task, colours)
    names = [_shortened(task.task) for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=60, ha="right", fontsize=8)
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", color=colours.faint, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _name_groups(axes, tasks, colours)


def _draw_task(axes: Any, column: int, task: TaskScores, colours: Palette) -> None:
    others = [spread.mean for name, spread in task.scores.items() if name != task.own]
    axes.scatter([column] * len(others), others, s=11, color=colours.dots, alpha=0.55, lw=0, zorder=3)
    if task.own is None:
        _bar(axes, column, task.best.low, task.best.high, colours.dots)
        return
    expert = task.scores[task.own]
    _bar(axes, column, expert.low, expert.high, colours.accent)
    axes.scatter([column], [expert.mean], s=46, marker="D", color=colours.accent, lw=0, zorder=5)
    if task.best_without_own is not None:
        without = task.best_without_own
        _bar(axes, column + 0.22, without.low, without.high, colours.dots)
        axes.scatter(
            [column + 0.22], [without.mean], s=24, facecolor=colours.paper, edgecolor=colours.ink, lw=1.0, zorder=4
        )


def _bar(axes: Any, column: float, low: float, high: float, colour: str) -> None:
    axes.plot([column, column], [low, high], color=colour, lw=3.2, alpha=0.32, solid_capstyle="round", zorder=2.5)


def _name_groups(axes: Any, row: Sequence[TaskScores], colours: Palette) -> None:
    """A line between groups of tasks and each group's name above its columns."""
    left = 0
    for place, (group, tasks) in enumerate(groupby(row, key=lambda task: task.group)):
        right = left + len(list(tasks))
        if left:
            axes.axvline(left - 0.5, color=colours.ink, lw=0.9)
        middle = (left + right - 1) / 2
        height = 15 if right - left < 5 and place % 2 else 4  # points: narrow groups' names keep clear
        axes.annotate(
            f"{printable(group)} ({right - left})",
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, height),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colours.ink,
        )
        left = right


def _add_legend(figure: Any, scores: PoolScores, colours: Palette, columns: int) -> None:
    from matplotlib.lines import Line2D

    def dot(label: str, marker: str, size: float, fill: str, edge: str) -> Any:
        return Line2D([], [], ls="", marker=marker, ms=size, mfc=fill, mec=edge, label=label)

    handles = [dot("an expert", "o", 4, colours.dots, colours.dots)]
    if any(task.own for task in scores.tasks):
        handles.insert(0, dot("the task's own expert", "D", 6, colours.accent, colours.accent))
        handles.append(dot("best expert if the pool lacked the own", "o", 5, colours.paper, colours.ink))
    handles.append(Line2D([], [], color=colours.line, lw=1.4, label=f"threshold p = {scores.p:g}"))
    legend = figure.legend(
        handles=handles, loc="upper center", ncols=columns, fontsize=8, frameon=False, handletextpad=0.4
    )
    for text in legend.get_texts():
        text.set_color(colours.ink)


def _shortened(task: str) -> str:
    task = printable(task)
    return task if len(task) <= 24 else f"{task[:12]}…{task[-11:]}"  # what tells names apart may come last
