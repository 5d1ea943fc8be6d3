"""Regret, on models whose best choices are known, and against direct computations."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mom.analysis.regret import measure_regret
from mom.analysis.samples import Batch, run_batch
from mom.metrics.regret import Swap, mean_regret
from tests.analysis.test_choice_value import right_and_wrong_loss
from tests.helpers.models import small_model, tokens
from tests.helpers.rules import rule_batch, rule_model


@pytest.mark.parametrize("router", ["oracle", "linear"])
def test_a_router_that_knows_the_rule_has_no_regret(router):
    model, batch = rule_model(router), rule_batch(windows=3)
    right, wrong = right_and_wrong_loss(model, batch)
    swaps, paths = measure_regret(model, [batch], 10**6, 50)
    assert len(swaps) == len(paths) == 3 * 6  # nothing depends on the last token
    regret = mean_regret(swaps, skip=3)
    assert (regret.better, regret.regret) == (0, 0)
    assert regret.change == pytest.approx(wrong - right, rel=1e-3)
    assert all(path.complete and path.gain == 0 and path.swaps == 0 for path in paths)


def test_a_router_that_is_always_wrong_has_the_regret_of_the_right_module():
    model, batch = rule_model("linear", wrong=True), rule_batch(windows=3)
    right, wrong = right_and_wrong_loss(model, batch)
    swaps, paths = measure_regret(model, [batch], 10**6, 50)
    regret = mean_regret(swaps, skip=3)
    assert (regret.swaps, regret.better, regret.wrong_module, regret.too_deep) == (18, 1, 1, 0)
    assert regret.regret == pytest.approx(wrong - right, rel=1e-3)
    assert all(path.gain == pytest.approx(wrong - right, rel=1e-3) and path.swaps == 1 for path in paths)


def test_a_router_that_skips_where_a_module_helps_is_too_shallow():
    model, batch = rule_model("linear", skip=True), rule_batch(windows=2)
    with torch.no_grad():
        model.model.stages[0].ffn.router.output.bias[3] = 20.0  # SKIP
    swaps, paths = measure_regret(model, [batch], 10**6, 1)
    regret = mean_regret(swaps, skip=3)
    assert regret.better == regret.too_shallow == 1
    assert all((path.own_modules, path.best_modules, path.complete) == (0, 1, False) for path in paths)


def test_a_swap_changes_the_sum_of_the_losses_from_its_token_on():
    model, batch = small_model(num_rounds=2, num_stages=2, router="linear"), Batch.of_text(tokens(1, 6))
    swaps, _ = measure_regret(model, [batch], 1, 0, seed=1)
    own = run_batch(model, batch)
    choices = own.choices()
    position = int(torch.randperm(5, generator=torch.Generator().manual_seed(1))[0])
    assert [(swap.kind, swap.round) for swap in swaps] == [(k, r) for k in choices for r in range(4)]
    for swap in swaps:
        taken = choices[swap.kind][0, position, swap.round].tolist()
        assert swap.chosen == taken[0]
        assert set(swap.changes) == set(range(4)) - set(taken)
        for other, change in swap.changes.items():
            given = {kind: value.clone() for kind, value in choices.items()}
            given[swap.kind][0, position, swap.round, 0] = other
            difference = run_batch(model, batch, given).loss - own.loss
            assert difference[0, :position].abs().nan_to_num().max() < 1e-5 if position else True
            assert change == pytest.approx(float(difference[0, position:].nansum()), abs=1e-4)


def test_the_best_path_of_a_complete_search_is_the_minimum():
    model = small_model(num_rounds=2, top_k=1, num_attention_modules=2, num_ffn_modules=2)
    batch = Batch.of_text(tokens(1, 4))
    _, paths = measure_regret(model, [batch], 1, 1000)
    own = run_batch(model, batch)
    position = int(torch.randperm(3, generator=torch.Generator().manual_seed(0))[0])
    base = float(own.loss[0, position:].nansum())
    best = {"attention": 0.0, "ffn": 0.0, None: 0.0}
    for attention, ffn in product(product(range(3), repeat=2), repeat=2):
        choices = own.choices()
        before = {kind: value[0, position, :, 0].tolist() for kind, value in choices.items()}
        choices["attention"][0, position, :, 0] = torch.tensor(attention)
        choices["ffn"][0, position, :, 0] = torch.tensor(ffn)
        gain = base - float(run_batch(model, batch, choices).loss[0, position:].nansum())
        best[None] = max(best[None], gain)
        if before["ffn"] == list(ffn):
            best["attention"] = max(best["attention"], gain)
        if before["attention"] == list(attention):
            best["ffn"] = max(best["ffn"], gain)
    assert {path.kind: path.gain for path in paths} == pytest.approx(best, abs=2e-3)
    assert all(path.complete for path in paths)
    # The search by single swaps ends at most there, and at least at the best single swap.
    swaps, searched = measure_regret(model, [batch], 1, 8)
    for path in searched:
        own_swaps = [swap.regret for swap in swaps if path.kind in (None, swap.kind)]
        assert max(own_swaps) - 1e-4 <= path.gain <= best[path.kind] + 2e-3


def test_the_budget_bounds_the_tokens_that_are_run():
    model, batch = small_model(num_rounds=2, top_k=1), Batch.of_text(tokens(4, 8))
    sweep = (1 + 2 * 2 * 3) * 8  # the recorded path, and each other choice of 2 pools in 2 rounds
    ran: list[int] = []
    swaps, paths = measure_regret(model, [batch], 3 * sweep, 0, on_progress=ran.append)
    assert (len(swaps), len(paths), sum(ran)) == (3 * 4, 0, 3 * sweep)
    swaps, paths = measure_regret(model, [batch], 6 * sweep, 16)
    assert len(swaps) == 3 * 4 and 0 < len(paths) <= 3 * 3


def test_ties_and_directions():
    tie = Swap("ffn", 0, 1, False, {0: -1e-4, 2: 0.5})
    deep = Swap("ffn", 0, 1, False, {0: 1.0, 3: -2.0})
    shallow = Swap("ffn", 0, 3, True, {0: -1.0, 1: -4.0})
    assert (tie.best, tie.regret, deep.best, shallow.best) == (1, 0, 3, 1)
    regret = mean_regret([tie, deep, shallow], skip=3)
    assert regret.regret == pytest.approx(2)
    assert (regret.too_deep, regret.too_shallow, regret.wrong_module) == pytest.approx((1 / 3, 1 / 3, 0))
