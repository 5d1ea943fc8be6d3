"""Figures of routing: the drawn numbers are those given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from mom.plots import routing as figures
from mom.plots.style import HEAT, MODULE_COLORS, smoothed, write_figure
from tests.helpers.figures import collisions

RUN = "2026-01-01_00-00-00-abcd"


def random_flow(rounds: int, slots: int, seed: int = 0) -> np.ndarray:
    """Return counts of random moves between choices, with the same total in each round."""
    choices = np.random.default_rng(seed).integers(slots, size=(rounds, 500))
    flow = np.zeros((rounds - 1, slots, slots))
    for r in range(rounds - 1):
        np.add.at(flow[r], (choices[r], choices[r + 1]), 1)
    return flow


def twice(array: np.ndarray) -> dict[str, np.ndarray]:
    return {"attention": array, "FFN": array}


def test_a_heat_map_shows_the_share_of_every_slot_in_its_round():
    attention = np.array([[3, 1, 0], [0, 0, 4], [0, 0, 0]])
    ffn = np.array([[1, 1, 1, 1], [8, 0, 0, 2], [0, 1, 0, 1]])
    figure = figures.module_use({"attention": attention, "FFN": ffn}, run=RUN)
    left, right = figure.axes[:2]
    assert collisions(figure) == []
    assert [text.get_text() for text in left.texts] == ["75", "25", "0", "0", "0", "100", "0", "0", "0"]
    assert [text.get_text() for text in right.texts][:8] == ["25"] * 4 + ["80", "0", "0", "20"]
    assert [text.get_text() for text in right.get_xticklabels()] == ["0", "1", "2", "SKIP"]
    assert left.images[0].get_cmap().name == HEAT
    assert RUN in figure.get_suptitle()


def test_stages_are_distinguished():
    use = np.ones((6, 3))
    axis = figures.module_use(twice(use), num_stages=2).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert len(axis.lines) == 1 and set(axis.lines[0].get_ydata()) == {2.5}


def test_bands_are_as_wide_as_the_flow_and_nodes_as_high_as_the_use():
    flow = random_flow(3, 4)
    axis = figures.module_flow(twice(flow), run=RUN).axes[0]
    heights = np.array([bar.get_height() for bar in axis.patches]).reshape(3, 4)
    uses = np.array([flow[0].sum(1), flow[0].sum(0), flow[1].sum(0)]) / 500
    np.testing.assert_allclose(heights, uses, atol=1e-12)
    assert collisions(axis.figure) == []
    for part, share in zip(axis.collections, flow.reshape(-1) / 500, strict=True):
        points = part.get_paths()[0].vertices
        left = points[points[:, 0] == points[:, 0].min(), 1]
        assert np.ptp(left) == pytest.approx(share)


def test_many_modules_show_their_transitions_within_stages():
    flow = random_flow(4, len(MODULE_COLORS) + 2)
    axis = figures.module_flow(twice(flow), num_stages=2).axes[0]
    within = flow[0] + flow[2]
    np.testing.assert_allclose(axis.images[0].get_array(), within / within.sum(1, keepdims=True))


@pytest.mark.parametrize("slots", [3, len(MODULE_COLORS) + 3])
def test_use_over_time_draws_every_slot(slots):
    use = np.random.default_rng(0).random((5, 2, slots))
    figure = figures.use_over_time(np.arange(5) * 10, twice(use), run=RUN)
    shares = use[:, 1] / use[:, 1].sum(-1, keepdims=True)
    axis = figure.axes[2]
    if slots == 3:
        drawn = np.array([line.get_ydata() for line in axis.lines])
        np.testing.assert_allclose(drawn, np.array([smoothed(share)[0] for share in shares.T]))
    else:
        np.testing.assert_allclose(axis.collections[0].get_array().reshape(slots, 5), shares.T)


def test_arrays_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match="array of attention must have 2 dimensions, got 1"):
        figures.module_use({"attention": np.ones(3), "FFN": np.ones((2, 3))})
    with pytest.raises(
        ValueError, match="arrays of attention and FFN must have the same length, got 2 and 3"
    ):
        figures.module_use({"attention": np.ones((2, 3)), "FFN": np.ones((3, 3))})


def test_a_figure_is_written_atomically(tmp_path):
    path = write_figure(figures.module_use(twice(np.ones((2, 3)))), tmp_path / "new" / "use.png")
    assert imread(path).ndim == 3
    assert sorted(file.name for file in path.parent.iterdir()) == ["use.png", "use.svg"]
