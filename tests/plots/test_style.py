"""Files of a figure: the PNG is what saving the figure gives, and the figure is laid out once for both files."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mom.plots.style import STYLE, new_figure, png, styled, write_figure


@styled
def a_figure() -> Figure:
    figure = new_figure("A title", "a run", 6, 4)
    for axis in figure.subplots(2, 2).flat:
        image = axis.imshow([[0, 1], [2, 3]])
        axis.set_xlabel("a long label of the x axis")
        figure.colorbar(image, ax=axis, label="value")
    return figure


@pytest.mark.parametrize("dpi", [60, 120])
@pytest.mark.parametrize("settings", [{}, {"figure.autolayout": True}])
def test_a_figure_is_laid_out_once_for_both_files(
    dpi: int, settings: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = png(a_figure(), dpi)
    laid_out: list[Figure] = []
    execute = ConstrainedLayoutEngine.execute

    def counted(engine: ConstrainedLayoutEngine, figure: Figure) -> object:
        laid_out.append(figure)
        return execute(engine, figure)

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", counted)
    with matplotlib.rc_context(settings):
        path = write_figure(a_figure(), tmp_path / "figure.png", dpi)

    assert path.read_bytes() == saved
    assert len(laid_out) == 1
    assert "<svg" in path.with_suffix(".svg").read_text()


def test_the_style_lays_out_no_figure_by_itself() -> None:
    with matplotlib.rc_context({"figure.constrained_layout.use": True}), matplotlib.rc_context(STYLE):
        assert Figure().get_layout_engine() is None
