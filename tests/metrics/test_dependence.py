"""Mutual information of choices, against known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mom.metrics import dependence
from mom.metrics.dependence import (
    counts_by_token,
    dependence_of_counts,
    entropy,
    fixed_agreement,
    mean_over_rounds,
    measure_dependence,
    mutual_information,
    sample_rounds,
)
from tests.helpers.routing import random_pass

RNG = np.random.default_rng(0)
N = 4000
WINDOW = np.arange(N) // 20


def test_a_choice_that_follows_from_the_attribute_shares_all_of_its_entropy():
    attribute = RNG.integers(0, 12, N)
    choice = attribute % 4
    measured = measure_dependence("ffn", 2, "token_id", choice, attribute, WINDOW)
    assert measured.information == pytest.approx(measured.entropy)
    assert measured.entropy == pytest.approx(math.log(4), abs=0.01)
    assert (measured.share, measured.fixed) == pytest.approx((1, 1))
    assert measured.constant == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("values", [5, 800])
def test_independent_choices_share_nothing_even_if_values_are_rare(values):
    choice, attribute = RNG.integers(0, 4, N), RNG.integers(0, values, N)
    measured = measure_dependence("ffn", 0, "token_id", choice, attribute, WINDOW)
    assert measured.share == pytest.approx(0, abs=0.02)
    assert measured.information == pytest.approx(measured.chance, abs=0.02)
    assert measured.fixed == pytest.approx(0.25, abs=0.04)
    assert (values == 800) == (measured.information > 0.2)  # the bias that chance removes


def test_a_noisy_channel_has_its_known_information():
    attribute = RNG.integers(0, 2, 40_000)
    flipped = RNG.random(40_000) < 0.1
    expected = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    assert mutual_information(attribute ^ flipped, attribute) == pytest.approx(expected, abs=0.01)


def test_a_constant_choice_has_no_share():
    measured = measure_dependence("ffn", 0, "token_id", np.zeros(N, dtype=int), RNG.integers(0, 5, N), WINDOW)
    assert (measured.entropy, measured.information) == pytest.approx((0, 0))
    assert math.isnan(measured.share) and (measured.fixed, measured.constant) == (1, 1)


def test_the_fixed_choice_is_fitted_on_other_windows():
    # A value that occurs in one window only cannot be predicted from the others.
    window = np.repeat(np.arange(40), 2)
    choice = RNG.integers(0, 2, 80)
    assert fixed_agreement(choice, np.arange(80), window) < 0.75
    assert fixed_agreement(choice, choice, window) == 1
    assert math.isnan(fixed_agreement(choice, choice, np.zeros(80, dtype=int)))


def test_means_over_rounds():
    attribute = RNG.integers(0, 4, N)
    first = measure_dependence("ffn", 0, "a", attribute, attribute, WINDOW)
    second = measure_dependence("ffn", 1, "a", RNG.integers(0, 4, N), attribute, WINDOW)
    mean = mean_over_rounds([first, second])
    assert mean.round is None
    assert mean.information == pytest.approx((first.information + second.information) / 2)
    assert mean.share == pytest.approx(0.5, abs=0.02)
    assert entropy(np.array([1, 1, 0, 2])) == pytest.approx(1.5 * math.log(2))


def test_counts_by_token_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch):
    routing, mask = random_pass(0, rows=4, length=9)
    choices = [record.ffn for record in routing]
    ids = torch.from_numpy(RNG.integers(0, 7, tuple(mask.shape)))
    number = choices[0].num_modules + 1
    wanted = np.zeros((len(choices), 7, number), dtype=int)
    for row, column in mask.nonzero().tolist():
        for index, choice in enumerate(choices):
            wanted[index, ids[row, column], int(choice.selected[row, column, 0])] += 1
    assert counts_by_token(choices, ids, mask, 7).tolist() == wanted.tolist()
    monkeypatch.setattr(dependence, "MAX_COUNTS", 2 * 7 * number)  # room for two rounds
    spacing = -(-len(choices) // 2)
    assert counts_by_token(sample_rounds(choices, 7), ids, mask, 7).tolist() == wanted[::spacing].tolist()
    monkeypatch.setattr(dependence, "MAX_COUNTS", 1)
    assert counts_by_token(sample_rounds(choices, 7), ids, mask, 7).tolist() == wanted[:1].tolist()


@pytest.mark.parametrize(
    ("follows", "share"),
    [(1.0, 1.0), (0.0, 0.0)],
    ids=["a table by id", "independent"],
)
def test_the_dependence_of_counts_has_its_known_share(follows, share):
    ids = RNG.integers(0, 500, N)
    choice = np.where(RNG.random(N) < follows, ids % 4, RNG.integers(0, 4, N))
    counts = np.zeros((2, 500, 5), dtype=np.int32)
    for joint in counts:
        np.add.at(joint, (ids, choice), 1)
    assert dependence_of_counts(counts) == pytest.approx(share, abs=0.02)
    measured = measure_dependence("ffn", 0, "token_id", choice, ids, WINDOW)
    assert dependence_of_counts(counts) == pytest.approx(measured.share, abs=0.02)


def test_no_tokens_or_one_choice_has_no_dependence():
    counts = np.zeros((2, 5, 3), dtype=np.int32)
    assert math.isnan(dependence_of_counts(counts))
    counts[:, :, 1] = 7
    assert math.isnan(dependence_of_counts(counts))
