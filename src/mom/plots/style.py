"""The style of all figures, and functions to write them to files, without windows or global state."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from mom.runs.files import atomic_file

R = TypeVar("R")

MODULE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Colors of up to eight modules, suited to color-blind readers (Okabe and Ito, 2008)."""
SKIP_COLOR = "#9A9A9A"
ROUNDING = 1e-5
"""Relative difference up to which numbers computed in float32 count as equal."""
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HEAT = "cividis"
"""Color map of all heat maps, suited to color-blind readers and grayscale print."""

_PER_INCH = 11  # characters of a title

STYLE: Any = {  # matplotlib types every key by name
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.titlesize": 11.5,
    "figure.facecolor": "white",
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
}


def styled(draw: Callable[..., R]) -> Callable[..., R]:
    """Run a drawing function with :data:`STYLE`, regardless of the process's settings."""

    @wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> R:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn


def new_figure(title: str, run: str, width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with a title and the run's name below it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    wrapped = [
        part
        for line in run.splitlines()
        for part in textwrap.wrap(line, round(_PER_INCH * width), break_on_hyphens=False)
    ]
    figure.suptitle("\n".join([title, *wrapped]))
    return figure


def legend_above(axis: Axes, columns: int = 3) -> None:
    """Put the legend of a panel above it, where it hides nothing; ``columns`` entries in a row."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=columns,
            columnspacing=1.2,
            handlelength=2.4,
            borderpad=0.2,
        )


def label_points(axis: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Label points, each label beside its point where it covers neither a point nor an earlier label.

    Call it once the axis has its limits; a label that is far from its point is tied to it by a line.
    """
    figure = axis.figure
    assert isinstance(figure, Figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # so that the layout is final
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in axis.transData.transform(points)]
    offsets = [  # in points
        distance * np.array([np.cos(angle), np.sin(angle)])
        for distance in (9, 14, 20, 28, 38, 50)
        for angle in np.radians(range(45, 405, 45))
    ]
    options: Any = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8}
    for point, label in zip(points, labels, strict=True):
        text = axis.annotate(label, point, xytext=(0, 0), **options)
        box = text.get_window_extent(canvas.get_renderer()).padded(1)
        places = ((offset, box.translated(*(offset * figure.dpi / 72))) for offset in offsets)
        free = (place for place in places if not any(place[1].overlaps(other) for other in taken))
        offset, box = next(free, (offsets[0], box))
        text.xyann = tuple(offset)
        taken.append(box)
        if np.hypot(*offset) > 15:
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": "gray"}
            axis.annotate("", point, xytext=tuple(offset), arrowprops=line, **options)


def series_style(index: int) -> dict[str, Any]:
    """Return color, marker, and dashes of a line: any two differ in print, in gray, and for color-blind readers."""
    return {
        "color": MODULE_COLORS[index % len(MODULE_COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINE_STYLES[index % len(LINE_STYLES)],
    }


def smoothed(values: ArrayLike) -> tuple[NDArray[np.float64], int]:
    """Return the mean of each value and those before it, and how many: a twentieth of all, at least up to five.

    NaN is skipped.
    """
    values = np.asarray(values, dtype=np.float64)
    span = max(min(5, 1 + len(values) // 5), len(values) // 20)
    known = np.isfinite(values)
    total, count = np.cumsum(np.where(known, values, 0.0)), np.cumsum(known)
    total[span:], count[span:] = total[span:] - total[:-span], count[span:] - count[:-span]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0), span


def is_constant(values: ArrayLike) -> bool:
    """Return whether values differ only by the rounding of float32 arithmetic."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return known.size == 0 or float(np.ptp(known)) <= ROUNDING * max(1.0, float(np.abs(known).max()))


def png(figure: Figure, dpi: int = 120) -> bytes:
    """Render a figure as a PNG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """Render a figure as a reproducible SVG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), matplotlib.rc_context({"svg.hashsalt": "mom"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write ``path``, a PNG file, and the same as ``.svg`` next to it, creating their directory; return ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _lay_out(figure, dpi)
    for target, content in ((path, png(figure, dpi)), (path.with_suffix(".svg"), svg(figure))):
        with atomic_file(target) as temporary:
            temporary.write_bytes(content)
    return path


def _lay_out(figure: Figure, dpi: int) -> None:
    """Place the panels for good; otherwise every file would lay the figure out again and draw it twice."""
    engine = figure.get_layout_engine()
    if engine is not None and figure.axes:
        figure.dpi = dpi  # that of the PNG file, in whose pixels text is measured
        with matplotlib.rc_context(STYLE):
            engine.execute(figure)
            figure.set_layout_engine(None)
