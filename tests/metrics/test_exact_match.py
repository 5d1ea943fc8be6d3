"""Exact match counts examples, not tokens, over all and by bucket."""

from __future__ import annotations

import pytest
import torch

from mom.metrics.exact_match import ExactMatch, exact_matches


def test_an_example_matches_if_all_its_answer_tokens_are_right() -> None:
    labels = torch.tensor([[-100, 1, -100, 2], [-100, 1, -100, 2], [-100, -100, -100, 0]])
    predicted = torch.tensor([[1, 0, 2, 0], [1, 0, 1, 2], [2, 2, 0, 2]])
    logits = torch.nn.functional.one_hot(predicted, 3).float()

    assert exact_matches(logits, labels).tolist() == [True, False, True]


def test_buckets_are_counted_separately_and_an_empty_one_is_left_out() -> None:
    metric = ExactMatch(["a", "b", "c"])
    metric.update(torch.tensor([True, False]), torch.tensor([0, 0]))
    metric.update(torch.tensor([True, True, False]), torch.tensor([0, 2, 2]))

    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(
        {"val/exact_match": 3 / 5, "val/exact_match/a": 2 / 3, "val/exact_match/c": 1 / 2}
    )
