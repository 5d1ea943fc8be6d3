"""Statistics against a recomputation that looks at one token of one round at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mom.metrics.depth import depth_metrics, depth_sums
from mom.metrics.routing import assignments_by_choice, routing_metrics, routing_sums
from mom.metrics.sums import add, collect
from mom.model import RoundRouting, Routing
from mom.model.losses import balance_loss

POOLS = ("attention", "ffn")
N_ATTENTION, N_FFN, STAGES, ROUNDS, K, FIXED = 3, 4, 2, 3, 2, 4


def random_choice(num_modules: int, generator: torch.Generator, shape: tuple[int, int]) -> Routing:
    """A record of random scores; SKIP takes all places where it ranks first, as in ``skip_rule: first``."""
    logits = 2 * torch.randn(*shape, num_modules + 1, generator=generator)
    scores = logits.softmax(-1)
    weights, selected = scores.topk(K, dim=-1)
    selected = torch.where(selected[..., :1] == num_modules, num_modules, selected)
    return Routing(scores, selected, weights / weights.sum(-1, keepdim=True), logits)


def random_pass(seed: int, rows: int = 3, length: int = 5) -> tuple[tuple[RoundRouting, ...], torch.Tensor]:
    """Records of all rounds, and a mask with padding in it."""
    generator = torch.Generator().manual_seed(seed)
    routing = tuple(
        RoundRouting(
            random_choice(N_ATTENTION, generator, (rows, length)),
            random_choice(N_FFN, generator, (rows, length)),
        )
        for _ in range(STAGES * ROUNDS)
    )
    mask = torch.rand(rows, length, generator=generator) > 0.3
    return routing, mask


def slow_depths(passes: list) -> dict[str, list[float]]:
    """Depths of every real token, by the definitions of the design, one token at a time."""
    found: dict[str, list[float]] = {
        name: [] for name in ("effective", "attention", "ffn", "weighted", "modules")
    }
    for routing, mask in passes:
        for row, column in np.argwhere(mask.numpy()):
            attention = ffn = modules = 0
            weight = 0.0
            for record in routing:
                for pool, size in (("attention", N_ATTENTION), ("ffn", N_FFN)):
                    choice = getattr(record, pool)
                    taken = [
                        (int(index), float(w))
                        for index, w in zip(
                            choice.selected[row, column], choice.weights[row, column], strict=True
                        )
                        if index < size
                    ]
                    modules += len(taken)
                    weight += sum(w for _, w in taken)
                    attention += pool == "attention" and bool(taken)
                    ffn += pool == "ffn" and bool(taken)
            found["effective"].append(FIXED + 0.5 * attention + 0.5 * ffn)
            found["attention"].append(FIXED + attention)
            found["ffn"].append(FIXED + ffn)
            found["weighted"].append(FIXED + 0.5 * weight)
            found["modules"].append(2 * FIXED + modules)
    return found


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
                skipped += all(one == size for one in taken)
                for one in taken:
                    if one < size:
                        load[index // ROUNDS, one] += 1
                p = choice.scores[row, column].tolist()
                entropies.append(-sum(x * math.log(x) for x in p) / math.log(size + 1))
                first_weights.append(float(choice.weights[row, column, 0]))
                for one in taken:
                    chosen[index // ROUNDS, one] += 1
                probability[index // ROUNDS] += p
    assert 0 < skipped < steps, "the example says nothing"
    assert metrics["skip_rate"] == pytest.approx(skipped / steps, rel=1e-12)
    assert metrics["skip_share"] == pytest.approx(skip_places / places, rel=1e-9)
    assert metrics["load_max_over_mean"] == pytest.approx(np.mean(load.max(1) / load.mean(1)), rel=1e-12)
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert metrics["dead_fraction"] == np.mean(load == 0)
    assert metrics["first_weight"] == pytest.approx(np.mean(first_weights), rel=1e-6)
    np.testing.assert_array_equal(assignments_by_choice(collect(sums)), chosen)
    for include_skip, slots in ((True, size + 1), (False, size)):
        f, p = (one[:, :slots] / one[:, :slots].sum(1, keepdims=True) for one in (chosen, probability))
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
    # Stage 0: all on one of two modules, 2. Stage 1 ran nothing and counts 0.
    assert metrics["load_max_over_mean"] == 1
    assert metrics["entropy"] == pytest.approx(math.log(2) / math.log(3))


def test_padding_alone_says_nothing():
    routing, mask = random_pass(0)
    nothing = torch.zeros_like(mask)
    sums = depth_sums(routing, nothing, POOLS)
    assert depth_metrics(collect(sums), POOLS, fixed_depth=1, graph_depth=1) == {}
    sums = routing_sums([r.ffn for r in routing], nothing, num_stages=STAGES)
    assert routing_metrics(collect(sums)) == {}


def test_collect_reduces_once_and_keeps_names_and_shapes():
    calls = []

    def two_ranks(flat: torch.Tensor) -> torch.Tensor:
        calls.append(flat.shape)
        return 2 * flat

    sums = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(0.25)}
    totals = collect(sums, two_ranks)
    assert calls == [(7,)]
    assert torch.equal(totals["a"], 2 * torch.arange(6).view(2, 3).double())
    assert totals["b"].shape == ()
    assert totals["b"] == 0.5
