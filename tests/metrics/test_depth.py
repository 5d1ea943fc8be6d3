"""Depth compared with a recomputation token by token and round by round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mom.metrics.depth import bin_depths, depth_bins, depth_metrics, depth_sums, moments_by, token_depths
from mom.metrics.sums import add, collect
from mom.model import Routing
from mom.model.routing import round_type
from tests.helpers.routing import FIXED, POOLS, ROUNDS, STAGES, random_pass, slow_depths


def depth_of(passes: list) -> dict[str, float]:
    sums = None
    for routing, mask in passes:
        sums = add(sums, depth_sums(routing, mask, POOLS))
    return depth_metrics(collect(sums), POOLS, fixed_depth=FIXED, graph_depth=FIXED + STAGES * ROUNDS)


def test_depth_equals_a_recomputation_token_by_token():
    passes = [random_pass(seed, rows, length) for seed, (rows, length) in enumerate([(3, 5), (1, 7), (2, 4)])]
    metrics, slow = depth_of(passes), slow_depths(passes)
    assert len(set(slow["effective"])) > 5, "the example says nothing"
    assert metrics["effective"] == pytest.approx(np.mean(slow["effective"]), rel=1e-12)
    assert metrics["effective_std"] == pytest.approx(np.std(slow["effective"]), rel=1e-9)
    for q in (10, 50, 90):
        expected = np.quantile(slow["effective"], q / 100, method="inverted_cdf")
        assert metrics[f"effective_q{q}"] == expected
    assert metrics["effective_attention"] == pytest.approx(np.mean(slow["attention"]), rel=1e-12)
    assert metrics["effective_ffn"] == pytest.approx(np.mean(slow["ffn"]), rel=1e-12)
    assert metrics["effective"] == pytest.approx(
        (metrics["effective_attention"] + metrics["effective_ffn"]) / 2
    )
    assert metrics["weighted"] == pytest.approx(np.mean(slow["weighted"]), rel=1e-6)
    assert metrics["modules_per_token"] == pytest.approx(np.mean(slow["modules"]), rel=1e-12)
    assert metrics["graph"] == FIXED + STAGES * ROUNDS


def test_a_plain_model_is_as_deep_as_its_graph():
    sums = depth_sums((), torch.ones(2, 3, dtype=torch.bool), POOLS)
    metrics = depth_metrics(collect(sums), POOLS, fixed_depth=7, graph_depth=7)
    assert metrics.pop("effective_std") == 0
    assert metrics.pop("modules_per_token") == 14
    assert set(metrics.values()) == {7}


def depths_of(routing):
    return token_depths(routing, fixed_depth=FIXED)


def test_depths_of_tokens_and_their_sums():
    routing, mask = random_pass(1)
    depths, slow = depths_of(routing), slow_depths([(routing, mask)])
    for name, depth in depths.items():
        np.testing.assert_allclose(depth[mask], slow[name], rtol=1e-6)
    graph = FIXED + STAGES * ROUNDS
    bins = depth_bins(depths, mask, fixed_depth=FIXED, graph_depth=graph)
    counts = np.bincount(np.round((np.array(slow["effective"]) - FIXED) * 2).astype(int), minlength=13)
    np.testing.assert_array_equal(bins["effective"], counts)
    assert int(bins["weighted"].sum()) == int(mask.sum())
    place = torch.randint(4, mask.shape, generator=torch.Generator().manual_seed(0))
    sums = moments_by(place, depths, mask, number=4)
    own = depths["weighted"][mask & (place == 2)].double()
    assert sums["tokens"][2] == len(own) > 0
    torch.testing.assert_close(sums["weighted/total"][2], own.sum())
    torch.testing.assert_close(sums["weighted/squares"][2], own.square().sum())


def one_choice(takes: list[int]) -> Routing:
    """A record of one module and K = 1 that each token takes (1), with a weight of 0.75, or skips (0)."""
    selected = 1 - torch.tensor(takes)[None, :, None]
    weights = torch.full(selected.shape, 0.75)
    scores = torch.full((1, len(takes), 2), 0.5)
    return Routing(scores, selected, weights, scores)


def test_a_step_of_three_pools_is_a_third_of_a_block():
    pools = ("attention", "conv", "ffn")
    record = round_type(pools)
    # The first token takes four modules of six, the second one.
    routing = [
        record(one_choice([1, 0]), one_choice([1, 0]), one_choice([1, 1])),
        record(one_choice([1, 0]), one_choice([0, 0]), one_choice([0, 0])),
    ]
    mask = torch.ones(1, 2, dtype=torch.bool)
    metrics = depth_metrics(collect(depth_sums(routing, mask, pools)), pools, fixed_depth=2, graph_depth=4)
    assert metrics["effective"] == pytest.approx(2 + 5 / 3 / 2)
    assert metrics["weighted"] == pytest.approx(2 + 0.75 * 5 / 3 / 2)
    assert [metrics[f"effective_{pool}"] for pool in pools] == [3.0, 2.5, 3.0]
    assert metrics["modules_per_token"] == 4 + 5 / 2

    depths = token_depths(routing, fixed_depth=2)
    assert depths["effective"].tolist() == [pytest.approx([2 + 4 / 3, 2 + 1 / 3])]
    assert depths["weighted"].tolist() == [pytest.approx([2 + 1.0, 2 + 0.25])]
    assert depths["modules"].tolist() == [[8.0, 5.0]]
    bins = depth_bins(depths, mask, fixed_depth=2, graph_depth=4, num_pools=3)
    assert bins["effective"].tolist() == [0, 1, 0, 0, 1, 0, 0]
    edges = bin_depths("effective", fixed_depth=2, graph_depth=4, num_pools=3)
    assert edges.tolist() == pytest.approx([2 + step / 3 for step in range(7)])
