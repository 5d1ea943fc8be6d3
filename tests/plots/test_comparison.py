"""The figure of a comparison: a difference of rounding is not marked."""

from __future__ import annotations

import pytest

from mom.config import CompareConfig
from mom.plots.comparison import draw
from mom.plots.style import MODULE_COLORS
from mom.runs.comparison import Comparison, Group, paired
from tests.helpers.figures import collisions


def group(name: str, values: list[float], baseline: list[float]) -> Group:
    ours, theirs = dict(enumerate(values)), dict(enumerate(baseline))
    return Group((name,), {}, ours, {}, theirs, paired(ours, theirs))


@pytest.mark.parametrize(
    ("shift", "noise", "filled"),
    [(5e-7, 1e-9, False), (0.1, 0.001, True), (0.1, 0.5, False)],
)
def test_only_a_difference_that_excludes_zero_is_filled(shift: float, noise: float, filled: bool) -> None:
    plain = [4.0, 4.1, 4.2]
    other = [value - shift + noise * (seed - 1) for seed, value in enumerate(plain)]
    groups = (group("mom", other, plain), Group(("plain",), {}, dict(enumerate(plain)), {}))
    figure = draw(Comparison(("arm",), {}, groups, (1,), ()), CompareConfig(runs="x"), ["mom", "plain"])
    panel = figure.axes[1]
    (point,) = [line for line in panel.lines if line.get_marker() == "o"]
    assert (point.get_markerfacecolor() == MODULE_COLORS[5]) is filled
    if shift < 1e-6:
        low, high = panel.get_xlim()
        assert shift < 0.01 * (high - low), "rounding looks like a difference"
    assert collisions(figure) == []
