"""Sampling: hashes hold out the right fraction, and scattered tokens keep their order."""

from __future__ import annotations

import pytest
import torch

from mom.data.controls.sampling import draw_rows, held_out, scatter
from mom.errors import UsageError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_row_is_held_out_regardless_of_the_other_rows() -> None:
    rows = torch.cartesian_prod(*[torch.arange(20)] * 4)

    chosen = held_out(rows, 0.3, generator())
    order = torch.randperm(len(rows), generator=generator())

    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(held_out(rows[order], 0.3, generator()), chosen[order])
    assert not torch.equal(held_out(rows, 0.3, torch.Generator().manual_seed(1)), chosen)


def test_no_column_tells_which_rows_are_held_out() -> None:
    rows = torch.cartesian_prod(*[torch.arange(20)] * 4)

    chosen = held_out(rows, 0.3, generator()).view(20, 20, 20, 20).float()

    for column in range(4):
        others = [other for other in range(4) if other != column]
        assert (chosen.mean(others) - 0.3).abs().max() < 0.03
        for partner in range(column):
            rest = [other for other in others if other != partner]
            assert (chosen.mean(rest) - 0.3).abs().max() < 0.12


def test_scattered_tokens_keep_their_order_and_reach_every_position() -> None:
    rows = torch.arange(3).repeat(500, 1)
    lengths = torch.arange(500) % 3 + 1

    result = scatter(rows, lengths, 5, 9, generator())

    assert result.shape == (500, 5)
    for row, length in zip(result.tolist(), lengths.tolist(), strict=True):
        assert [token for token in row if token != 9] == list(range(length))
    assert (result != 9).any(dim=0).all()
    assert torch.equal(scatter(rows, torch.full((500,), 3), 3, 9, generator()), rows)


def test_rows_are_drawn_until_enough_are_kept() -> None:
    random = generator()

    rows = draw_rows(
        100, lambda number: torch.randint(10, (number, 1), generator=random), lambda rows: rows[:, 0] < 2, ""
    )

    assert rows.shape == (100, 1)
    assert set(rows.flatten().tolist()) == {0, 1}


def test_a_condition_that_no_row_meets_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^no rows$"):
        draw_rows(
            3,
            lambda number: torch.zeros(number, 1),
            lambda rows: torch.zeros(len(rows), dtype=bool),
            "no rows",
        )
