"""The routing heatmap: which experts each site used (GLIDER, figure 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glider.errors import RouterError
from glider.layers.trace import Trace
from glider.report.style import LIGHT, Dress, dress, save, start


@dataclass(frozen=True)
class Panel:
    """One heatmap: the mean weight of each expert (columns) at each site (rows), and the expert to outline."""

    title: str
    weights: Sequence[Sequence[float]]
    own: str | None = None


def draw_heatmap(
    trace: Trace, path: Path, titles: Sequence[str], rows: Sequence[int], own: Sequence[str | None] | None = None
) -> Path:
    """Draw sites x experts, mean weight over tokens, a panel for each of the given rows of the batch; write a picture.

    `own` names the expert of each panel's task, which is outlined. Raises `MissingDependency` without matplotlib.
    """
    if not trace.calls:
        raise RouterError("a trace with decisions", "none (a router without experts)", "Trace another router.")
    panels = [
        Panel(title, trace.heatmap(row).tolist(), expert)
        for row, title, expert in zip(rows, titles, own or [None] * len(rows), strict=False)
    ]
    return draw_panels(panels, trace.experts, trace.sites, path)


def draw_panels(
    panels: Sequence[Panel], experts: Sequence[str], sites: Sequence[str], path: Path, colours: Dress = LIGHT
) -> Path:
    """Draw panels side by side, at most four in a line; raises `MissingDependency` without matplotlib."""
    pyplot = start("draw the heatmap")
    columns = min(4 if len(experts) <= 12 else 3, len(panels))
    lines = -(-len(panels) // columns)
    wide = max(2.6, 0.19 * len(experts) + 0.3)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(wide * columns + 1.6, 3.4 * lines + 0.9), sharex=True, sharey=True, squeeze=False
    )
    image = None
    for axis, panel in zip(axes.flat, panels, strict=False):
        image = axis.imshow(panel.weights, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        if panel.own in experts:
            _outline(axis, experts.index(panel.own), len(sites))
        axis.set_title(panel.title, fontsize=9)
        axis.set_xticks(range(len(experts)), experts, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        marks = _layer_marks(sites)
        axis.set_yticks(list(marks), list(marks.values()), fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("site (layer)", fontsize=8)
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:  # the last panel of each column
        axis.tick_params(labelbottom=True)
    outlined = any(panel.own in experts for panel in panels)
    title = "Mean weight of each expert at each site" + (" (dashed: the task's own expert)" if outlined else "")
    figure.suptitle(title, fontsize=11, color=colours.ink)
    figure.tight_layout(rect=(0, 0, 0.93, 0.97))
    if image is not None:
        figure.colorbar(image, cax=figure.add_axes((0.945, 0.25, 0.012, 0.5))).ax.tick_params(labelsize=7)
    dress(figure, colours)
    return save(pyplot, figure, path)


def _outline(axis: Any, column: int, sites: int) -> None:
    from matplotlib.patches import Rectangle

    box = Rectangle((column - 0.5, -0.5), 1, sites, fill=False, edgecolor="red", linestyle="--", lw=1.5)
    box.set_clip_on(False)
    axis.add_patch(box)


def _layer_marks(sites: Sequence[str]) -> dict[int, str]:
    """Row of the first site of every few layers, with the layer's number."""
    first: dict[str, int] = {}
    for i, site in enumerate(sites):
        number = next((part for part in site.split(".") if part.isdigit()), "")
        label = f"{site.split('.')[0][:3]} {number}" if site.startswith(("encoder", "decoder")) else number
        first.setdefault(label, i)
    step = max(1, len(first) // 8)
    return {row: label for k, (label, row) in enumerate(first.items()) if k % step == 0}
