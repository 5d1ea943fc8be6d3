"""Checks of figures that people would make by eye."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text


def texts(figure: Figure) -> list[str]:
    """Return every text in a figure that is not empty."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def collisions(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts that overlap, of legends and panels, and texts that leave the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    # A pixel less on each side, because neighbors may touch.
    boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in _drawn(figure)]
    page = figure.bbox.padded(1)
    outside = [
        (text, "the page")
        for text, box in boxes
        if not page.contains(*box.min) or not page.contains(*box.max)
    ]
    pairs = [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]
    legends = [legend.get_window_extent(renderer).padded(-2) for legend in figure.findobj(Legend)]
    panels = [axis.get_window_extent(renderer) for axis in figure.axes if axis.axison]
    hidden = [("a legend", "a panel") for legend in legends for panel in panels if legend.overlaps(panel)]
    return outside + pairs + hidden


def _drawn(figure: Figure) -> Iterator[Text]:
    """Yield the texts that are drawn: of ticks, only those within an axis are."""
    ticks, shown = set(), set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = {axis.label, axis.get_offset_text()}
            ticks |= {text for text in axis.findobj(Text) if text not in labels}
            shown |= {tick.label1 for tick in axis._update_ticks() if axes.axison}
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and (text not in ticks or text in shown):
            yield text
