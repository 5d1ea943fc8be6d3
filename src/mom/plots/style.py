"""How our figures look, and how they become files: no window, no global state, colors that everybody sees."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mom.runs.files import atomic_file

MODULE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""One for each module, up to eight (Okabe and Ito, 2008)."""
SKIP_COLOR = "#9A9A9A"
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HEAT = "cividis"
"""Color map of every heat map: as good for color-blind eyes, and still in order when printed gray."""

STYLE: Any = {  # matplotlib names every key in a type of its own
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.titlesize": 11.5,
    "figure.facecolor": "white",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function under :data:`STYLE`, whatever the process has set."""

    @wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn


def new_figure(title: str, run: str, width: float, height: float) -> Figure:
    """An empty figure in inches, with what it shows over it and the run's name beneath that."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{run}" if run else title)
    return figure


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write a PNG file, whole or not at all, making its folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(png(figure, dpi))
    return path
