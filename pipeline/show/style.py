"""How every figure looks: colours, sheets of digits, axes, and the file. matplotlib draws without a display."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.files import replacing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 32  # of each colour in a file
INK, FAINT, ACCENT = "#1b1f24", "#5c6570", "#c2410c"  # on white, each has the contrast that text needs: 4.5
PALE = "#d9dee4"  # of what lies behind
# Blue and vermillion of Okabe & Ito (2008), which colour-blind people tell apart.
SAMPLER_COLOURS = {"prior": "#0072b2", "fitted": "#d55e00", "real": INK}
MARGIN = 8  # pixels of white around a picture
BETTER = {
    "class_accuracy": "higher is better",
    "diversity": "1 is as diverse as real images",
    "frechet": "lower is better",
    "coverage": "higher is better",
}


def panels(width: float, height: float, *titles: str, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure and its panels, one under each title, in so many rows; sizes are in inches.

    It has matplotlib's own settings, whatever MPLBACKEND and a matplotlibrc of the user say: a notebook's backend is
    missing elsewhere, and a matplotlibrc with usetex needs LaTeX. A program that has imported matplotlib before keeps
    its settings.
    """
    if "matplotlib" not in sys.modules:
        os.environ.pop("MPLBACKEND", None)
        import matplotlib

        matplotlib.rcdefaults()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    columns = -(-len(titles) // rows)
    axes = [figure.add_subplot(rows, columns, place) for place in range(1, len(titles) + 1)]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=11, color=INK)
    return figure, axes


def save(figure: "Figure", path: Path) -> np.ndarray:
    """Writes a PNG without empty bands at its edges, and returns the picture (H, W, 3) uint8.

    Each colour has 32 levels: a sheet of digits then has few enough for a palette, and a third of the size.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = trimmed(np.asarray(canvas.buffer_rgba())[..., :3])
    step = 255 / (LEVELS - 1)
    picture = ((drawn / step).round() * step).round().astype(np.uint8)
    image = Image.fromarray(picture)
    if image.getcolors(256):  # a palette would merge rare colours of more, such as those of a legend
        image = image.quantize(256, dither=Image.Dither.NONE)
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)
    return picture


def trimmed(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) with as much white at its edges as a margin needs."""
    rows, columns = (np.flatnonzero((picture < 255).any(axes)) for axes in ((1, 2), (0, 2)))
    if not len(rows):
        return picture
    down, across = (slice(max(lines[0] - MARGIN, 0), lines[-1] + 1 + MARGIN) for lines in (rows, columns))
    return picture[down, across]


def save_all(figures: "Iterable[tuple[str, Figure]]", folder: Path) -> None:
    """Writes each figure to folder/NAME.png, and removes PNG files of other names there."""
    stale = set(folder.glob("*.png"))
    for name, figure in figures:
        save(figure, folder / f"{name}.png")
        stale.discard(folder / f"{name}.png")
    for path in stale:
        path.unlink()


def show_sheet(axes: "Axes", sheet: np.ndarray, row_names: Sequence[str] = "0123456789") -> None:
    """A sheet (H, W) uint8 in its own greys, with a name beside each of its rows."""
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * len(sheet) / len(row_names) for row in range(len(row_names))], row_names)
    axes.tick_params(length=0, labelcolor=FAINT, labelsize=9)
    axes.spines[:].set_visible(False)


def plain_axes(axes: "Axes", x: str, y: str) -> None:
    """Labels, light ticks and horizontal grid lines."""
    axes.set_xlabel(x, color=FAINT, fontsize=9)
    axes.set_ylabel(y, color=FAINT, fontsize=9)
    axes.tick_params(which="both", colors=FAINT, labelsize=8, length=2)
    axes.grid(visible=True, axis="y", color="#eceff2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def by_weight(axes: "Axes") -> None:
    """What the panel of a figure against the KL weight has in common with the others."""
    logarithmic(axes.xaxis)
    plain_axes(axes, "KL weight β", "")


def points(axes: "Axes", table: "pd.DataFrame", x: str, y: str, colour: str, label: str, form: str = "o") -> None:
    """Rows of a table that have both figures, with bars of one standard error where it has a column NAME_error."""
    known = table.dropna(subset=[x, y])
    axes.plot(known[x], known[y], form, color=colour, markersize=5, linewidth=1.2, label=label)
    for name, error, axis in ((x, "xerr", axes.xaxis), (y, "yerr", axes.yaxis)):
        if f"{name}_error" in known:
            bars: dict[str, Any] = {error: known[f"{name}_error"].fillna(0.0)}
            axes.errorbar(known[x], known[y], fmt="none", ecolor=colour, elinewidth=1.2, capsize=2, **bars)
        if name.endswith("/frechet"):
            logarithmic(axis)


def titled(metric: str) -> str:
    """A metric, such as `validation/frechet`, with what a good value is."""
    name = metric.rpartition("/")[2]
    return f"{name}: {BETTER[name]}" if name in BETTER else name


def logarithmic(axis: Any) -> None:
    """A logarithmic axis with a few plain numbers: 0.01, 0.1, 1, 30. An axis without positive data stays linear."""
    low, high = axis.get_data_interval()
    if not 0 < low <= high < np.inf:
        return
    axis._set_axes_scale("log")
    plain_numbers(axis)


def plain_numbers(axis: Any) -> None:
    """A few plain numbers on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: "Figure", columns: int = 8, **look: Any) -> None:
    """One legend below all panels, which names each label once; look: other options of matplotlib's legend."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found, frameon=False, ncols=columns, loc="outside lower center", fontsize=9, **look)
