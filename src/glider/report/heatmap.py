"""The routing heatmap: which experts each site used (GLIDER, figure 2), by the parts of a layer and then by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glider.errors import RouterError
from glider.layers.trace import Trace
from glider.printable import printable
from glider.report.style import LIGHT, Palette, apply_palette, require_area, save, start


@dataclass(frozen=True)
class Panel:
    """One heatmap: the mean weight of each expert (columns) at each site (rows), and the expert to outline."""

    title: str
    weights: Sequence[Sequence[float]]
    target: str | None = None


@dataclass(frozen=True)
class Block:
    """The rows of one part, a projection of attention or of the MLP: its sites from the first layer to the last."""

    part: str
    sites: tuple[int, ...]  # by their place in the pool's order
    layers: tuple[str, ...]


def draw_heatmap(
    trace: Trace, path: Path, titles: Sequence[str], rows: Sequence[int], targets: Sequence[str | None] | None = None
) -> Path:
    """Draw sites x experts, mean weight over tokens, a panel for each of the given rows of the batch; write a picture.

    `targets` names the expert of each panel's task, which is outlined. Raises `MissingDependency` without matplotlib.
    """
    if not trace.calls:
        raise RouterError("a trace with decisions", "none (a router without experts)", "Trace another router.")
    panels = [
        Panel(title, trace.heatmap(row).tolist(), expert)
        for row, title, expert in zip(rows, titles, targets or [None] * len(rows), strict=False)
    ]
    return draw_panels(panels, trace.experts, trace.sites, path)


def draw_panels(
    panels: Sequence[Panel], experts: Sequence[str], sites: Sequence[str], path: Path, colours: Palette = LIGHT
) -> Path:
    """Draw panels side by side, at most four in a line; raises `MissingDependency` without matplotlib, and
    `ConfigError` for a picture too large."""
    pyplot = start("draw the heatmap")
    blocks = site_blocks(sites)
    columns = min(4 if len(experts) <= 12 else 3, len(panels))
    lines = -(-len(panels) // columns)
    wide, high = max(2.6, 0.19 * len(experts) + 0.3), max(3.4, 0.3 * len(blocks) + 1)
    width = wide * columns + 2.4
    require_area(width, high * lines + 0.9)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(width, high * lines + 0.9), sharex=True, sharey=True, squeeze=False
    )
    image = None
    for axis, panel in zip(axes.flat, panels, strict=False):
        image = _draw_panel(axis, panel, experts, blocks)
    _name_rows(axes, len(panels), blocks, labels=max(1, int(50 * high / len(blocks) / 7)))  # of 7 points in a block
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:  # the last panel of each column
        axis.tick_params(labelbottom=True)
    outlined = any(panel.target in experts for panel in panels)
    title = "Mean weight of each expert at each site" + (" (dashed: the task's own expert)" if outlined else "")
    figure.suptitle(title, fontsize=11, color=colours.ink)
    figure.tight_layout(rect=(0, 0, 1 - 0.65 / width, 0.97))
    if image is not None:
        scale = figure.add_axes((1 - 0.55 / width, 0.25, 0.15 / width, 0.5))
        figure.colorbar(image, cax=scale).ax.tick_params(labelsize=7)
    apply_palette(figure, colours)
    return save(pyplot, figure, path)


def site_blocks(sites: Sequence[str]) -> list[Block]:
    """Sites by their part, in the order in which the parts first come."""
    places: dict[str, list[tuple[int, str]]] = {}
    for i, site in enumerate(sites):
        part, layer = _place(site)
        places.setdefault(part, []).append((i, layer))
    return [Block(part, *map(tuple, zip(*rows, strict=True))) for part, rows in places.items()]


def _place(site: str) -> tuple[str, str]:
    """The part and the layer of a site: `self_attn.q_proj` and `12` of `model.layers.12.self_attn.q_proj`."""
    names = site.split(".")
    numbers = [i for i, name in enumerate(names) if name.isdigit()]
    plain = [name for i, name in enumerate(names) if i not in numbers and i + 1 not in numbers]
    stack = f"{names[0][:3]} " if names[0] in ("encoder", "decoder") else ""
    return stack + ".".join(plain[1:] if stack else plain[-2:]), names[numbers[0]] if numbers else ""


def _draw_panel(axis: Any, panel: Panel, experts: Sequence[str], blocks: Sequence[Block]) -> Any:
    weights = [panel.weights[site] for block in blocks for site in block.sites]
    image = axis.imshow(weights, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if panel.target in experts:
        _outline(axis, experts.index(panel.target), len(weights))
    end = 0
    for block in blocks[:-1]:
        end += len(block.sites)
        axis.axhline(end - 0.5, color="white", lw=0.6)
    axis.set_title(printable(panel.title), fontsize=9)
    axis.set_xticks(
        range(len(experts)), list(map(printable, experts)), rotation=60, ha="right", rotation_mode="anchor", fontsize=7
    )
    return image


def _name_rows(axes: Any, panels: int, blocks: Sequence[Block], labels: int) -> None:
    """Parts on the left of each line of panels; on its right at most `labels` layers of each part."""
    middles, layers, start = [], {}, 0
    for block in blocks:
        middles.append(start + (len(block.sites) - 1) / 2)
        step = -(-len(block.layers) // labels)
        layers |= {start + i: layer for i, layer in enumerate(block.layers) if i % step == 0}
        start += len(block.sites)
    axes[0, 0].set_yticks(middles, [printable(block.part) for block in blocks])  # of all: the panels share the axis
    axes[0, 0].set_yticks(list(layers), list(layers.values()), minor=True)
    axes[0, 0].yaxis.remove_overlapping_locs = False
    for i, axis in enumerate(axes.flat[:panels]):
        last = (i + 1) % axes.shape[1] == 0 or i == panels - 1
        axis.tick_params(axis="y", which="major", length=0, labelsize=7)
        axis.tick_params(axis="y", which="minor", left=False, labelleft=False, right=True, length=2, pad=2)
        if last:
            axis.tick_params(axis="y", which="minor", labelright=True, labelsize=6)
            axis.yaxis.set_label_position("right")
            axis.set_ylabel("layer", fontsize=8)


def _outline(axis: Any, column: int, sites: int) -> None:
    from matplotlib.patches import Rectangle

    box = Rectangle((column - 0.5, -0.5), 1, sites, fill=False, edgecolor="red", linestyle="--", lw=1.5)
    box.set_clip_on(False)
    axis.add_patch(box)
