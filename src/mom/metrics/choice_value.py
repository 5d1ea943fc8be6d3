"""The value of the routers' choices: the loss increase when other choices replace them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mom.metrics.sums import Floats

REPLACEMENTS = {
    "permuted": "the choices of another token",
    "position": "the position's most frequent choices",
    "token": "the token id's most frequent choices",
    "second": "the next best choices, without the first",
    "uniform": "choices drawn among all that the round can reach",
}
"""Choices that replace a token's own."""


@dataclass(frozen=True)
class ChoiceValue:
    """The loss increase when a pool's choices are replaced.

    Attributes:
        kind: the pool; ``None`` replaces the choices of all pools.
        round: the round, counted over all stages; ``None`` replaces the choices of all rounds.
        replacement: the new choices, a key of :data:`REPLACEMENTS`.
        increase: mean loss increase in nats per predicted token.
        error: its standard error over windows; NaN with a single window.
        changed: fraction of the replaced choices that differ from the token's own.
    """

    kind: str | None
    round: int | None
    replacement: str
    increase: float
    error: float
    changed: float


def mean_with_error(values: Floats, window: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean of tokens' values and its standard error, clustered by window.

    The error is that of a ratio of sums: ``sqrt(W / (W - 1) · Σ_w (Σ_{t in w} (x_t - mean))²) / n`` for W windows and n
    tokens. Tokens of a window share their context, so they are not independent.

    Args:
        values: [n], without NaN.
        window: the window of each token, [n].
    """
    if not len(values):
        return float("nan"), float("nan")
    mean = float(values.mean())
    _, index = np.unique(window, return_inverse=True)
    sums = np.bincount(index, weights=values - mean)
    if len(sums) < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values))


def most_frequent(choices: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give every token the most frequent choices of its group, [n, K] → [n, K]; the smaller ones in a tie.

    Args:
        choices: the K choices of each token.
        group: the group of each token, [n].
    """
    kinds, kind = np.unique(choices, axis=0, return_inverse=True)
    _, index = np.unique(group, return_inverse=True)
    pairs, counts = np.unique(index * len(kinds) + kind.ravel(), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    groups = pairs[order] // len(kinds)
    present, first = np.unique(groups, return_index=True)  # the largest count of each group
    mode = np.zeros(int(present.max(initial=-1)) + 1, dtype=np.int64)
    mode[present] = pairs[order][first] % len(kinds)
    return kinds[mode[index]]
