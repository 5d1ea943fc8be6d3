"""Measures of specialization on choices whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from mom.metrics.specialization import Specialization
from mom.model import Routing


def record(selected: torch.Tensor, number: int = 4) -> Routing:
    """A round in which the tokens take these modules, [B, T]; the other tensors are not read."""
    scores = torch.zeros(*selected.shape, number + 1)
    return Routing(scores, selected[..., None], scores[..., :1], scores)


def measure(rules: torch.Tensor, *rounds: torch.Tensor, number: int = 4) -> dict[str, float]:
    metric = Specialization(len(rounds), number)
    for row in range(len(rules)):  # batches of one sequence
        choices = [record(first[row : row + 1], number) for first in rounds]
        metric.update(choices, rules[row : row + 1], torch.ones_like(rules[row : row + 1], dtype=torch.bool))
    return metric.compute()


RULES = torch.arange(4).repeat(3, 5)  # (3, 20), rules equally frequent


def test_a_module_of_its_own_for_each_rule() -> None:
    assert measure(RULES, (RULES + 1) % 4, 3 - RULES) == pytest.approx(
        {"collapse_average": 0, "collapse_worst": 0, "inverse_mutual_information": 0, "alignment": 1}
    )


def test_one_module_for_all_rules() -> None:
    assert measure(RULES, torch.full_like(RULES, 2)) == pytest.approx(
        {"collapse_average": 1, "collapse_worst": 1, "inverse_mutual_information": 1, "alignment": 0.25}
    )


def test_two_modules_for_pairs_of_rules() -> None:
    # p(m) = 1/2, 1/2, 0, 0; I = ln 2; two of four rules can be matched.
    assert measure(RULES, RULES // 2) == pytest.approx(
        {"collapse_average": 2 / 3, "collapse_worst": 1, "inverse_mutual_information": 0.5, "alignment": 0.5}
    )


def test_choices_that_do_not_depend_on_the_rule() -> None:
    rules, choice = torch.arange(16)[None] // 4, torch.arange(16)[None] % 4

    assert measure(rules, choice) == pytest.approx(
        {"collapse_average": 0, "collapse_worst": 0, "inverse_mutual_information": 1, "alignment": 0.25}
    )


def test_rules_of_different_frequency() -> None:
    rules = torch.tensor([[0, 0, 0, 1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))

    assert measure(rules, rules, number=2) == pytest.approx(
        {
            "collapse_average": 0.5,
            "collapse_worst": 0.5,
            "inverse_mutual_information": 1 - entropy / math.log(2),
            "alignment": 1,
        }
    )


def test_rounds_are_averaged_and_skip_is_not_counted() -> None:
    half = RULES.clone()
    half[0] = 4  # SKIP
    fixed, skipped = torch.zeros_like(RULES), torch.full_like(RULES, 4)

    assert measure(RULES, half, fixed, skipped)["alignment"] == pytest.approx((1 + 0.25) / 2)
    assert measure(RULES, skipped) == {}
    assert measure(torch.zeros_like(RULES), torch.zeros_like(RULES), number=1) == {}


def test_tokens_outside_of_the_mask_or_without_a_rule_are_not_counted() -> None:
    rules, mask = RULES.clone(), torch.ones_like(RULES, dtype=torch.bool)
    first = RULES.clone()
    rules[0], first[0] = -1, 0
    mask[1], first[1] = False, 0

    metric = Specialization(1, 4)
    metric.update([record(first)], rules, mask)

    assert metric.joint.tolist() == [[[5 * (row == column) for column in range(4)] for row in range(4)]]
