"""The routing heatmap: which experts each site used (GLIDER, figure 2)."""

from collections.abc import Sequence
from pathlib import Path

from glider.errors import MissingDependency, RouterError
from glider.experts.disk import write_file
from glider.layers.trace import Trace


def draw_heatmap(
    trace: Trace, path: Path, titles: Sequence[str], rows: Sequence[int], own: Sequence[str | None] | None = None
) -> Path:
    """Draw sites x experts, mean weight over tokens, a panel for each of the given rows of the batch; write a PNG.

    `own` names the expert of each panel's task, which is outlined. Raises `MissingDependency` without matplotlib.
    """
    if not trace.calls:
        raise RouterError("a trace with decisions", "none (a router without experts)", "Trace another router.")
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise MissingDependency("matplotlib", "draw the heatmap", "pip install 'glider-moe[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    sites = trace.sites
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(2.6 * columns + 1.6, 3.4 * lines + 0.9), sharex=True, sharey=True, squeeze=False
    )
    image = None
    for panel, row, title, expert in zip(axes.flat, rows, titles, own or [None] * len(rows), strict=False):
        weights = trace.heatmap(row).numpy()  # (S, E)
        image = panel.imshow(weights, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        if expert in trace.experts:
            left = trace.experts.index(expert) - 0.5
            box = Rectangle((left, -0.5), 1, len(sites), fill=False, edgecolor="red", linestyle="--", lw=1.5)
            box.set_clip_on(False)
            panel.add_patch(box)
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(trace.experts)), trace.experts, rotation=60, ha="right", fontsize=7)
        marks = _layer_marks(sites)
        panel.set_yticks(list(marks), list(marks.values()), fontsize=7)
    for panel in axes.flat[len(rows) :]:
        panel.set_axis_off()
    for panel in axes[:, 0]:
        panel.set_ylabel("site (layer)", fontsize=8)
    figure.suptitle(
        "Mean weight of each expert at each site" + (" (dashed: the task's own expert)" if own else ""), fontsize=11
    )
    figure.tight_layout(rect=(0, 0, 0.93, 0.97))
    if image is not None:
        bar = figure.add_axes((0.945, 0.25, 0.012, 0.5))
        figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7)
    # metadata without a date: the same trace draws the same file
    write_file(path, lambda partial: figure.savefig(partial, dpi=130, format="png", metadata={"Software": None}))
    pyplot.close(figure)
    return path


def _layer_marks(sites: Sequence[str]) -> dict[int, str]:
    """Row of the first site of every few layers, with the layer's number."""
    first: dict[str, int] = {}
    for i, site in enumerate(sites):
        number = next((part for part in site.split(".") if part.isdigit()), "")
        label = f"{site.split('.')[0][:3]} {number}" if site.startswith(("encoder", "decoder")) else number
        first.setdefault(label, i)
    step = max(1, len(first) // 8)
    return {row: label for k, (label, row) in enumerate(first.items()) if k % step == 0}
