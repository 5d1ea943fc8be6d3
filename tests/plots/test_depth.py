"""Figures of depth, compared with the given arrays."""

from __future__ import annotations

import numpy as np
import pytest

from mom.metrics import depth as depth_metrics
from mom.plots import depth as depth_figures
from tests.helpers.figures import collisions, texts
from tests.plots.test_routing import RUN


def test_the_distribution_and_its_mean():
    figure = depth_figures.depth_distribution({"effective": ([2.0, 2.5, 4.0], [1, 2, 1])}, graph_depth=4)
    axis = figure.axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.25, 0.5, 0.25]
    assert axis.lines[0].get_xdata()[0] == 2.75
    assert "mean 2.75" in texts(figure) and "effective depth (blocks)" in texts(figure)


def test_bins_of_frequency_weigh_every_token():
    rng = np.random.default_rng(0)
    kinds = rng.zipf(1.6, size=5000) % 300
    depths = rng.integers(4, 20, size=5000) / 2 + (kinds == 1)
    tokens = np.bincount(kinds, minlength=310)
    sums = [np.bincount(kinds, weights=values, minlength=310) for values in (depths, depths**2)]
    binned = depth_metrics.binned_by_frequency(tokens, *sums)
    assert binned.tokens.sum() == 5000
    frequency = 1e6 * tokens[kinds] / 5000
    for index, (low, high) in enumerate(zip(binned.edges[:-1], binned.edges[1:], strict=True)):
        own = depths[(frequency >= low * (1 - 1e-12)) & (frequency < high * (1 - 1e-12))]
        assert len(own) == binned.tokens[index]
        if len(own):
            assert binned.mean()[index] == pytest.approx(own.mean())
            assert binned.std()[index] == pytest.approx(own.std(), abs=1e-6)
    line = depth_figures.depth_by_frequency({"effective": binned}).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), binned.mean()[binned.tokens > 0])
    assert depth_metrics.binned_by_frequency(np.zeros(3), np.zeros(3), np.zeros(3)).tokens.sum() == 0


def test_depth_by_loss_omits_empty_bins():
    binned = depth_metrics.Binned([0, 1, 2, 3], [2, 0, 1], [10.0, 0, 7.0], [52.0, 0, 49.0])
    assert binned.mean()[[0, 2]].tolist() == [5, 7] and np.isnan(binned.mean()[1])
    assert binned.std()[[0, 2]].tolist() == [1, 0]
    other = depth_metrics.Binned([0, 1, 2, 3], [2, 0, 1], [8.0, 0, 7.0], [34.0, 0, 49.0])
    figure = depth_figures.depth_by_loss({"effective": binned, "attention": other}, run=RUN)
    assert figure is not None and collisions(figure) == []
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines] == [[0.5, 2.5]] * 2
    assert len({line.get_linestyle() for line in figure.axes[0].lines}) == 2, "distinguishable without color"


def test_a_depth_that_all_tokens_share_is_said_and_equal_ones_are_drawn_once():
    edges, tokens = [0.0, 1, 2], np.array([4, 4])
    rounding = np.array([3e-6, -2e-6])
    flat = depth_metrics.Binned(edges, tokens, 8.0 * tokens + rounding, 64.0 * tokens)
    varied = depth_metrics.Binned(edges, tokens, np.array([20.0, 28]), np.array([104.0, 200]))
    figure = depth_figures.depth_by_loss({"effective": flat, "weighted": varied})
    assert figure is not None
    assert len(figure.axes[0].lines) == 1
    assert figure.get_supxlabel() == "The same for all tokens, so not drawn: effective depth 8."
    twice = depth_figures.depth_by_loss({"effective": varied, "weighted": varied})
    assert twice is not None and "effective = weighted" in texts(twice)
    assert depth_figures.depth_by_loss({"effective": flat}) is None

    bins = np.array([7.0, 7.5, 8.0])
    spread, single = (bins, [1, 0, 3]), (bins, [0, 0, 4])
    figure = depth_figures.depth_distribution({"effective": single, "weighted": spread}, graph_depth=8)
    assert figure is not None and len(figure.axes) == 1
    assert "effective depth 8" in figure.get_supxlabel()
    assert depth_figures.depth_distribution({"effective": single}, graph_depth=8) is None
