"""Sums over ranks and their transfer to the host."""

from __future__ import annotations

import torch

from mom.metrics.sums import WeightedMean, collect


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


def test_a_weighted_mean_shows_nan_unless_it_has_no_weight():
    mean = WeightedMean()
    mean.update(torch.tensor(float("nan")), 0)
    assert torch.isnan(mean.compute().mean)
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), torch.tensor(1))
    assert mean.compute() == (2.0, 4)
    mean.update(torch.tensor(float("nan")), 1)
    assert torch.isnan(mean.compute().mean)


def test_a_weight_beyond_the_integers_of_float32_is_exact():
    mean = WeightedMean()
    for weight in (2**24, 1, 1):
        mean.update(torch.tensor(1.0), weight)
    assert int(mean.compute().weight) == 2**24 + 2
