"""How every figure looks: opaque, in a light and a dark palette, the same file for the same numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glider.errors import ConfigError, MissingDependency
from glider.files.disk import write_file

FORMATS = (".png", ".svg", ".pdf")
LARGEST_AREA = 4000  # square inches: 270 MB of points
_DPI = 130


@dataclass(frozen=True)
class Palette:
    """The colours of a figure."""

    paper: str
    ink: str
    faint: str  # grids, and the names of groups
    dots: str  # what is many
    accent: str  # what is looked for
    line: str  # thresholds


LIGHT = Palette("#ffffff", "#1d2129", "#c9ced8", "#7b8794", "#0b61c4", "#c62828")
DARK = Palette("#15181e", "#e6e8ec", "#3c434f", "#8d98a8", "#6cb2ff", "#ff6f61")


def start(purpose: str) -> Any:
    """matplotlib's pyplot, drawing to files; raises `MissingDependency` without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise MissingDependency("matplotlib", purpose, "pip install 'glider-moe[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "glider"
    matplotlib.rcParams["text.parse_math"] = False  # two dollars in a prompt or a task's name are no formula
    return pyplot


def require_area(width: float, height: float) -> None:
    """Raise `ConfigError` for a picture of so many inches that nobody looks at it, and gigabytes hold it."""
    if width * height > LARGEST_AREA:
        expected = f"a picture of at most {LARGEST_AREA} square inches"
        raise ConfigError(expected, f"{width:.0f} x {height:.0f}", "Draw fewer tasks, experts or sites.")


def apply_palette(figure: Any, colours: Palette) -> None:
    """Put a figure's background, axes and texts into the colours."""
    figure.set_facecolor(colours.paper)
    for axes in figure.axes:
        axes.set_facecolor(colours.paper)
        axes.tick_params(colors=colours.ink, which="both")
        for spine in axes.spines.values():
            spine.set_color(colours.faint)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(colours.ink)


def save(pyplot: Any, figure: Any, path: Path) -> Path:
    """Write the figure whole, its format by the file's suffix, without a date: the same figure is the same file."""
    form = require_format(path)
    dates = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    write_file(
        path,
        lambda partial: figure.savefig(
            partial, dpi=_DPI, format=form[1:], metadata=dates[form], facecolor=figure.get_facecolor()
        ),
    )
    pyplot.close(figure)
    return path


def require_format(path: Path, *others: str) -> str:
    """The suffix of a picture's path, or of `others`; raises `ConfigError` for another."""
    known = (*FORMATS, *others)
    if path.suffix not in known:
        raise ConfigError(f"a file that ends in {', '.join(known)}", path.name, "Name the file so.")
    return path.suffix
