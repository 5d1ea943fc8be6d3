"""Draw rows that meet a condition, and spread tokens over a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mom.errors import UsageError

if TYPE_CHECKING:
    from torch import Generator, Tensor

MAX_DRAWS = 1000


def draw_rows(
    number: int, draw: Callable[[int], Tensor], keep: Callable[[Tensor], Tensor], explain: str
) -> Tensor:
    """Draw until ``number`` rows are kept.

    Args:
        number: rows to return.
        draw: returns a number of rows.
        keep: returns which rows to keep, boolean.
        explain: message of the error if hardly any rows are kept.

    Raises:
        UsageError: too few of the rows are kept.
    """
    import torch

    parts, missing = [], number
    for _ in range(MAX_DRAWS):
        rows = draw(number)
        rows = rows[keep(rows)][:missing]
        parts.append(rows)
        missing -= len(rows)
        if not missing:
            return torch.cat(parts)
    raise UsageError(explain)


def held_out(rows: Tensor, fraction: float, random: Generator) -> Tensor:
    """Choose about a ``fraction`` of all possible rows by a hash that ``random`` seeds, boolean (M,).

    Args:
        rows: int64 (M, L), values below 2^16.
        fraction: from 0 to 1.
        random: equal states give equal choices, whichever other rows there are.
    """
    import torch

    prime = 2**31 - 1
    factors = torch.randint(1, prime, (2, rows.shape[1] + 1), generator=random)
    first, second = ((rows * factor[1:]).sum(1).add(factor[0]) % prime for factor in factors)
    # A linear hash alone would hold out rows that lie on a line.
    mixed = ((first ^ (second >> 7)) * 48271) % prime
    return mixed < fraction * prime


def scatter(rows: Tensor, lengths: Tensor, length: int, filler: int, random: Generator) -> Tensor:
    """Spread the tokens of each row over a longer sequence, in order, at random positions.

    Training on short rows then trains every position and distance that longer rows need.

    Args:
        rows: int64 (M, L), padded on the right.
        lengths: tokens of each row, int64 (M,).
        length: tokens of the result, at least L.
        filler: token of the positions left over.
        random: draws the positions.

    Returns:
        int64 (M, ``length``).
    """
    import torch

    ranks = torch.rand(len(rows), length, generator=random).argsort(1).argsort(1)
    valid = torch.arange(rows.shape[1]) < lengths[:, None]
    sequences = torch.full((len(rows), length), filler)
    sequences[ranks < lengths[:, None]] = rows[valid]
    return sequences
