"""Figures of the routers' choices, compared with the given numbers."""

from __future__ import annotations

import math

import pytest

from mom.metrics.choice_value import REPLACEMENTS, ChoiceValue
from mom.metrics.dependence import Dependence
from mom.metrics.difficulty import DepthOfGroup
from mom.metrics.regret import Regret
from mom.plots.choices import choice_value, dependence, depth_by_group, regret
from mom.plots.style import png


def test_each_pool_has_a_line_for_each_replacement() -> None:
    values = [
        ChoiceValue(kind, number, name, 0.1 * (number or 9) + index, math.nan, 1.0)
        for kind in ("attention", "ffn")
        for number in (None, 0, 1, 2)
        for index, name in enumerate(REPLACEMENTS)
    ]
    figure = choice_value(values, run="a run")
    assert [axis.get_title() for axis in figure.axes] == ["attention", "FFN"]
    for axis in figure.axes:
        lines = [container.lines[0] for container in axis.containers]
        assert [[round(x) for x in line.get_xdata()] for line in lines] == [[0, 1, 2]] * 5
        assert len({line.get_xdata()[0] for line in lines}) == 5, "error bars stand side by side"
        assert [line.get_ydata()[2] for line in lines] == pytest.approx([0.2, 1.2, 2.2, 3.2, 4.2])
    assert png(figure).startswith(b"\x89PNG")


def test_regret_and_dependence_by_round() -> None:
    regrets = {("ffn", number): Regret(5, 0.2, 0.1 * number, 0.5, 0, 0, 0.2) for number in range(3)}
    figure = regret(regrets, pools=("ffn",))
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[1:]] == [[0, 0.1, 0.2], [0.5] * 3]
    measured = [
        Dependence("ffn", number, name, 1.0, 0.5, 0.0, share, 0.5, 0.5)
        for name, share in (("token_id", 0.5), ("position", 0.0))
        for number in (None, 0, 1)
    ]
    figure = dependence(measured, pools=("ffn",))
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[1:]] == [[0.5, 0.5], [0.0, 0.0]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["token id", "position"]


def test_groups_have_bars_with_their_names() -> None:
    rows = [
        DepthOfGroup("token_class", name, 10, 1.0, 2.0, 2.0, depth)
        for name, depth in (("a", 3.0), ("b", 4.0))
    ]
    figure = depth_by_group(rows)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [3.0, 4.0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "token class: a (10)",
        "token class: b (10)",
    ]
