"""Depth compared with a recomputation token by token and round by round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mom.metrics.depth import depth_bins, depth_metrics, depth_sums, moments_by, token_depths
from mom.metrics.sums import add, collect
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
