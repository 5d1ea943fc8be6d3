"""Figures of single modules, compared with the given numbers."""

from __future__ import annotations

import pytest

from mom.metrics.modules import Module, Pair, Removal
from mom.plots.modules import removal, similarity
from mom.plots.style import png
from tests.helpers.figures import collisions

MODULES = [Module(0, kind, number) for kind in ("attention", "ffn") for number in range(2)]


def test_similarity_writes_each_number_twice() -> None:
    pairs = [
        Pair(MODULES[0], MODULES[1], 0.12, 0.34, 0.56),
        Pair(MODULES[2], MODULES[3], -0.21, -0.001, 0.65),
    ]
    figure = similarity(pairs, run="a run")
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes[:6]]

    assert texts == [
        ["1.00", value, value, "1.00"] for value in ("0.12", "0.34", "0.56", "-0.21", "0.00", "0.65")
    ]
    assert "a run" in figure.get_suptitle()
    assert png(figure).startswith(b"\x89PNG")


def test_names_of_removed_modules_do_not_collide() -> None:
    modules = [Module(0, kind, number) for number in range(6) for kind in ("attention", "ffn")]
    greedy = [(module, 3.83 + 1e-3 * place) for place, module in enumerate(modules)]
    figure = removal(Removal(3.83, dict(greedy), greedy, 10), run="a run", tolerance=0.01)
    for label in figure.axes[1].get_xticklabels():  # rotated, so that their boxes overlap but they do not
        assert label.get_rotation() == 50
    figure.axes[1].set_xticks([])
    assert collisions(figure) == []


@pytest.mark.parametrize("greedily", [True, False])
def test_removal_draws_bars_and_a_curve(greedily: bool) -> None:
    alone = dict(zip(MODULES, (2.3, 2.0, 2.5, 1.9), strict=True))
    greedy = [(MODULES[3], 1.9), (MODULES[0], 2.6)] if greedily else []
    figure = removal(Removal(2.0, alone, greedy, 10), run="a run", tolerance=0.1)
    bars = figure.axes[0]
    widths = {
        label.get_text(): bar.get_width()
        for label, bar in zip(bars.get_yticklabels(), bars.patches, strict=True)
    }

    assert widths == {
        "FFN 1": pytest.approx(-0.1),
        "attention 1": 0.0,
        "attention 0": pytest.approx(0.3),
        "FFN 0": pytest.approx(0.5),
    }
    assert len(figure.axes) == 1 + greedily
    if greedily:
        curve = figure.axes[1].lines[0]
        assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0, 1, 2], [2.0, 1.9, 2.6])
        names = [label.get_text() for label in figure.axes[1].get_xticklabels()]
        assert names == ["none", "FFN 1", "attention 0"]
    assert png(figure).startswith(b"\x89PNG")
