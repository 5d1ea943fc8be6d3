"""Routing metrics compared with a recomputation token by token and round by round."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mom.metrics.depth import depth_metrics, depth_sums
from mom.metrics.routing import (
    assignments_by_choice,
    choices_by_rule,
    pool_sums,
    routing_metrics,
    routing_sums,
)
from mom.metrics.sums import add, collect
from mom.model import Routing
from mom.model.losses import balance_loss
from tests.helpers.routing import (
    N_ATTENTION,
    N_FFN,
    POOLS,
    ROUNDS,
    STAGES,
    random_pass,
)


@pytest.mark.parametrize(("pool", "size"), [("attention", N_ATTENTION), ("ffn", N_FFN)])
def test_routing_equals_a_recomputation_step_by_step(pool, size):
    passes = [random_pass(seed) for seed in range(3)]
    sums = None
    for routing, mask in passes:
        choices = [getattr(record, pool) for record in routing]
        sums = add(sums, routing_sums(choices, mask, num_stages=STAGES))
    metrics = routing_metrics(collect(sums))

    load = np.zeros((STAGES, size))
    steps = skipped = places = skip_places = 0
    entropies, first_weights = [], []
    chosen, probability = np.zeros((STAGES, size + 1)), np.zeros((STAGES, size + 1))
    for routing, mask in passes:
        for index, record in enumerate(routing):
            choice = getattr(record, pool)
            for row, column in np.argwhere(mask.numpy()):
                taken = choice.selected[row, column].tolist()
                steps += 1
                places += len(taken)
                skip_places += taken.count(size)
                skipped += all(slot == size for slot in taken)
                for slot in taken:
                    if slot < size:
                        load[index // ROUNDS, slot] += 1
                p = choice.scores[row, column].tolist()
                entropies.append(-sum(x * math.log(x) for x in p) / math.log(size + 1))
                first_weights.append(float(choice.weights[row, column, 0]))
                for slot in taken:
                    chosen[index // ROUNDS, slot] += 1
                probability[index // ROUNDS] += p
    assert 0 < skipped < steps, "the example must skip some steps"
    assert metrics["skip_rate"] == pytest.approx(skipped / steps, rel=1e-12)
    assert metrics["skip_share"] == pytest.approx(skip_places / places, rel=1e-9)
    assert metrics["load_max_over_mean"] == pytest.approx(np.mean(load.max(1) / load.mean(1)), rel=1e-12)
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert metrics["dead_fraction"] == np.mean(load == 0)
    assert metrics["first_weight"] == pytest.approx(np.mean(first_weights), rel=1e-6)
    np.testing.assert_array_equal(assignments_by_choice(collect(sums)), chosen)
    for include_skip, slots in ((True, size + 1), (False, size)):
        f, p = (
            counts[:, :slots] / counts[:, :slots].sum(1, keepdims=True) for counts in (chosen, probability)
        )
        wanted = np.mean(slots * (f * p).sum(1))
        found = routing_metrics(collect(sums), balance_skip=include_skip)["balance_loss"]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_the_balance_loss_is_the_one_that_is_trained_with():
    routing, mask = random_pass(0)
    metrics = {}
    for pool in POOLS:
        choices = [getattr(record, pool) for record in routing]
        sums = routing_sums(choices, mask, num_stages=STAGES)
        metrics[pool] = routing_metrics(collect(sums))["balance_loss"]
    trained = float(balance_loss(routing, ROUNDS, mask))
    assert STAGES * sum(metrics.values()) == pytest.approx(trained, rel=1e-5)


def test_an_unused_module_and_an_unused_pool_are_dead():
    scores = torch.tensor([0.5, 0.0, 0.5]).expand(1, 4, 3)
    first = Routing(scores, torch.zeros(1, 4, 1, dtype=torch.int64), torch.ones(1, 4, 1), scores)
    skip = first._replace(selected=torch.full((1, 4, 1), 2))
    mask = torch.ones(1, 4, dtype=torch.bool)
    metrics = routing_metrics(collect(routing_sums([first, skip], mask, num_stages=2)))
    assert metrics["dead_fraction"] == 0.75
    assert metrics["skip_rate"] == metrics["skip_share"] == 0.5
    # Stage 0 uses one of two modules: 2. Stage 1 ran no module and counts 0.
    assert metrics["load_max_over_mean"] == 1
    assert metrics["entropy"] == pytest.approx(math.log(2) / math.log(3))


def test_padding_alone_gives_no_metrics():
    routing, mask = random_pass(0)
    nothing = torch.zeros_like(mask)
    sums = depth_sums(routing, nothing, POOLS)
    assert depth_metrics(collect(sums), POOLS, fixed_depth=1, graph_depth=1) == {}
    sums = routing_sums([r.ffn for r in routing], nothing, num_stages=STAGES)
    assert routing_metrics(collect(sums)) == {}


def test_use_and_flow_equal_a_count_token_by_token():
    routing, mask = random_pass(0)
    sums = pool_sums([record.ffn for record in routing], mask)
    use = np.zeros((len(routing), N_FFN + 1))
    flow = np.zeros((len(routing) - 1, N_FFN + 1, N_FFN + 1))
    for row, column in mask.nonzero().tolist():
        path = [record.ffn.selected[row, column].tolist() for record in routing]
        for index, places in enumerate(path):
            for slot in places:
                use[index, slot] += 1
            if index:
                flow[index - 1, path[index - 1][0], places[0]] += 1
    np.testing.assert_array_equal(sums["use"], use)
    np.testing.assert_array_equal(sums["flow"], flow)


def test_first_choices_are_counted_by_rule():
    skip = 2  # of two modules
    selected = torch.tensor(
        [[[0, 1, 1, skip], [1, 1, 0, 0]], [[1, 1, 1, 1], [skip, 0, 0, 0]]]  # 2 rounds, 2 rows, 4 tokens
    )
    choices = [
        Routing(torch.zeros(2, 4, 3), taken[..., None], torch.ones(2, 4, 1), torch.zeros(2, 4, 3))
        for taken in selected
    ]
    rules = torch.tensor([[0, 0, 1, 1], [1, -1, 0, 2]])  # -1: no rule applies; 2: a rule without a module
    mask = torch.tensor([[True, True, True, True], [True, True, False, True]])

    assert choices_by_rule(choices, rules, mask).tolist() == [
        [[1, 1, 0], [0, 2, 1]],
        [[0, 2, 0], [0, 2, 1]],
    ]
