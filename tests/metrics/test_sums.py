"""Sums over ranks and their transfer to the host."""

from __future__ import annotations

import torch

from mom.metrics.sums import collect


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
