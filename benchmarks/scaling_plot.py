"""The figure of scaling.py, from the rows that it and t5_loop.py wrote."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glider.report.style import LIGHT, Palette, apply_palette, save, start

Rows = Sequence[dict[str, Any]]
PANELS = {
    "experts": "experts",
    "tokens": "tokens at once",
    "rank": "rank",
    "width": "width D (to 8/3 D)",
}
FEW = 16  # tokens; up to these the limit is of bytes, above of FLOPs


def draw(rows: Rows, path: Path, colours: Palette = LIGHT) -> Path:
    """Draw what there is: a panel for each sweep, one for memory, one for T5; raises `MissingDependency`."""
    pyplot = start("draw the benchmark")
    figure, axes = pyplot.subplots(2, 3, figsize=(10.5, 6.2))
    panels = axes.flat
    shown: list[tuple[Callable[..., None], Rows]] = [
        (partial(_ratios, name=name), [row for row in rows if row.get("sweep") == name]) for name in PANELS
    ]
    shown.append((_memory, [row for row in rows if row.get("sweep") == "experts" and row["tokens"] == 1]))
    shown.append((_loop, [row for row in rows if "model" in row]))
    for axis, (draw_panel, own) in zip(panels, shown, strict=True):
        if not own:  # not measured
            axis.set_axis_off()
            continue
        draw_panel(axis, own, colours)
        axis.tick_params(labelsize=7.5)
        axis.grid(color=colours.faint, lw=0.5, alpha=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for text in axis.legend(fontsize=7.5, frameon=False).get_texts():
            text.set_color(colours.ink)
    apply_palette(figure, colours)
    figure.tight_layout()
    return save(pyplot, figure, path)


def _ratios(axis: Any, rows: Rows, colours: Palette, name: str) -> None:
    """Measured ratios with their quartiles, the limit a dashed line of the same colour."""
    if name == "tokens":
        series = [("1 query", rows, colours.accent, "o")]
    else:
        few, many = ([row for row in rows if (row["tokens"] > FEW) == large] for large in (False, True))
        series = [("512 tokens", many, colours.accent, "o"), ("1 token", few, colours.line, "s")]
    for label, own, colour, marker in series:
        if not own:
            continue
        x = [row[name] for row in own]
        spread = [[row["ratio"] - row["low"] for row in own], [row["high"] - row["ratio"] for row in own]]
        y = [row["ratio"] for row in own]
        axis.errorbar(x, y, spread, color=colour, marker=marker, ms=4, lw=1.5, elinewidth=1, capsize=2, label=label)
        for few in (True, False):  # two limits that no line joins
            part = [row for row in own if (row["tokens"] <= FEW) == few]
            limit = f"limit ({'bytes' if few else 'FLOPs'}), {label}"
            if part:
                style = ":" if few else "--"
                axis.plot([row[name] for row in part], [row["limit"] for row in part], style, color=colour, label=limit)
    _logarithmic(axis, sorted({row[name] for row in rows}))
    axis.set_xlabel(PANELS[name], fontsize=9)
    axis.set_ylabel("time / bare layer", fontsize=9)


def _memory(axis: Any, rows: Rows, colours: Palette) -> None:
    """Megabytes of one layer's gates and experts: computed, and as the process grew."""
    x = [row["experts"] for row in rows]
    axis.plot(x, [row["held_megabytes"] for row in rows], color=colours.dots, ls="--", lw=1.2, label="computed")
    axis.plot(
        x, [row["grown_megabytes"] for row in rows], color=colours.accent, marker="o", ms=4, lw=0, label="resident"
    )
    _logarithmic(axis, x)
    axis.set_yscale("log")
    axis.set_xlabel("experts", fontsize=9)
    axis.set_ylabel("MB for a layer", fontsize=9)


def _loop(axis: Any, rows: Rows, colours: Palette) -> None:
    """Bars of the routed T5 and of the loop over experts, each with its figure."""
    groups = list(dict.fromkeys((row["case"], row["experts"]) for row in rows))
    for place, (model, colour) in enumerate((("routed", colours.accent), ("loop", colours.dots))):
        own = [row for row in rows if row["model"] == model]
        at = [groups.index((row["case"], row["experts"])) + 0.4 * place - 0.2 for row in own]
        if own:
            axis.bar(at, [row["ratio"] for row in own], 0.38, color=colour, label=model)
        for x, row in zip(at, own, strict=True):
            axis.annotate(
                f"{row['ratio']:.2f}",
                (x, row["ratio"]),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=colours.ink,
            )
    axis.set_xticks(range(len(groups)), [f"{case}\n{experts} experts" for case, experts in groups])
    axis.axhline(1, color=colours.line, lw=1, ls="--", label="bare")
    axis.set_ylabel("time / bare T5", fontsize=9)
    axis.margins(y=0.1)


def _logarithmic(axis: Any, ticks: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
