"""The value of choices, on models whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mom.analysis.choice_value import measure_choice_value, num_value_passes, second_best
from mom.analysis.samples import Batch, run_batch
from mom.metrics.choice_value import REPLACEMENTS, mean_with_error, most_frequent
from mom.model.routing import choose
from tests.helpers.models import small_model, tokens
from tests.helpers.rules import rule_batch, rule_model


def by_scope(values) -> dict:
    return {(value.kind, value.round, value.replacement): value for value in values}


@pytest.mark.parametrize("router", ["oracle", "linear"])
def test_a_known_rule_costs_a_known_number_of_nats_without_the_right_choice(router):
    model, batch = rule_model(router), rule_batch()
    right, wrong = right_and_wrong_loss(model, batch)
    values = by_scope(measure_choice_value(model, [batch]))
    modules = batch.choices["ffn"]
    order = torch.randperm(modules.numel(), generator=torch.Generator().manual_seed(0))
    moved = (modules.flatten()[order] != modules.flatten()).view_as(modules)
    share = float(moved[:, :-1].float().mean())  # of the predicted tokens
    for number in (None, 0):
        permuted = values["ffn", number, "permuted"]
        assert permuted.increase == pytest.approx(share * (wrong - right), rel=1e-3)
        assert permuted.changed == pytest.approx(float(moved.float().mean()))
        # A token's id says nothing about its rule, its position everything.
        assert values["ffn", number, "position"].increase == pytest.approx(0, abs=1e-5)
        assert values["ffn", number, "position"].changed == 0
        assert values["ffn", number, "token"].increase > 0.3 * (wrong - right)
        second = values["ffn", number, "second"]
        if router == "oracle":  # it has no second choice
            assert second.changed == 0
        else:
            assert second.increase == pytest.approx(wrong - right, rel=1e-3)


def right_and_wrong_loss(model, batch) -> tuple[float, float]:
    """Return the loss of the right module, and of any other."""
    losses = []
    for shift in (0, 1):
        loss = run_batch(model, batch, {"ffn": (batch.choices["ffn"] + shift) % 3}).loss[:, :-1]
        assert loss.max() - loss.min() < 0.01
        losses.append(float(loss.mean()))
    return losses[0], losses[1]


def test_nothing_changes_where_there_is_no_choice():
    model = small_model(router="sequential", top_k=1, skip=False, schedule="layerwise")
    batches = [Batch.of_text(tokens(2, 9)), Batch.of_text(tokens(1, 5, seed=1))]
    values = measure_choice_value(model, batches)
    assert all(value.changed == 0 for value in values)
    assert all(abs(value.increase) < 1e-6 for value in values)


def test_a_choice_by_token_id_is_the_token_ids_most_frequent():
    model = small_model(router="random", top_k=1, num_rounds=2)
    values = by_scope(measure_choice_value(model, [Batch.of_text(tokens(4, 12))]))
    assert values[None, None, "token"].changed == 0
    assert values[None, None, "token"].increase == pytest.approx(0, abs=1e-6)
    assert values[None, None, "permuted"].changed > 0.3


def test_increases_are_differences_of_mean_losses_over_all_batches():
    model = small_model(num_rounds=2, num_stages=2)
    batches = [Batch.of_text(tokens(2, 9)), Batch.of_text(tokens(1, 5, seed=1))]
    passes = []
    values = by_scope(measure_choice_value(model, batches, on_progress=passes.append))
    assert sum(passes) == num_value_passes(model) == 1 + 5 * (1 + 2 * 5)
    assert len(values) == len(REPLACEMENTS) * 11
    own, new = [], []
    for batch in batches:
        record = run_batch(model, batch)
        choices = record.choices()
        choices["attention"] = choices["attention"].clone()
        choices["attention"][:, :, 3] = second_best(record.routing[3].attention)
        own.append(record.loss[:, :-1].flatten())
        new.append(run_batch(model, batch, choices).loss[:, :-1].flatten())
    expected = torch.cat(new).mean() - torch.cat(own).mean()
    assert values["attention", 3, "second"].increase == pytest.approx(float(expected), abs=1e-6)
    assert values["attention", 3, "second"].changed == 1


def test_the_second_best_choices_leave_out_the_first():
    logits = torch.tensor([[[3.0, 1.0, 2.0, 0.0]]])
    for top_k, expected in ((1, [2]), (2, [2, 1])):
        record = choose(logits, num_modules=3, top_k=top_k, normalize=True)
        assert second_best(record).flatten().tolist() == expected
    only = torch.tensor([True, False, False, True])
    record = choose(logits, num_modules=3, top_k=1, normalize=False, reachable=only)
    assert second_best(record).flatten().tolist() == [3]
    record = choose(logits, num_modules=3, top_k=2, normalize=False, reachable=only)
    assert second_best(record).flatten().tolist() == [0, 3]  # nothing else is reachable


def test_most_frequent_choices_by_group():
    choices = np.array([[0, 1], [0, 1], [2, 1], [2, 1], [0, 2], [0, 2]])
    group = np.array([5, 5, 5, 9, 9, 9])
    assert most_frequent(choices, group).tolist() == [[0, 1]] * 3 + [[0, 2]] * 3


def test_errors_are_clustered_by_window():
    rng = np.random.default_rng(0)
    values, window = rng.normal(size=60), np.repeat(np.arange(20), 3)
    means = values.reshape(20, 3).mean(axis=1)
    mean, error = mean_with_error(values, window)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(20))
    assert np.isnan(mean_with_error(values[:3], window[:3])[1])
