"""The dependence of the routers' choices on what is known about a token, by mutual information.

The first choice c of a token in a step and an attribute a of the token, such as its ID, are two discrete variables over
n tokens, with the entropy ``H(c) = -Σ p(c) ln p(c)`` and the mutual information ``I(c; a) = Σ p(c, a) ln (p(c, a) /
(p(c) p(a)))``, in nats. In a finite sample, I is above 0 even if c and a are independent, and an attribute with many
rare values seems to determine everything. So the mean of I over random permutations of the attribute, ``E``, is
subtracted, as in the adjusted mutual information (Vinh, Epps, and Bailey 2010): the *share* ``(I - E) / (H(c) - E)`` is
0 if they are independent and 1 if the attribute determines the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mom.model import Routing

PERMUTATIONS = 3
"""Permutations over which the mutual information by chance is averaged."""


MAX_COUNTS = 2**23
"""Maximum number of counts by token during training."""


@dataclass(frozen=True)
class Dependence:
    """The dependence of a pool's first choices on an attribute.

    Attributes:
        kind: the pool.
        round: the round, counted over all stages; ``None`` is the mean over rounds.
        attribute: name of the attribute.
        entropy: H(c) in nats.
        information: I(c; a) in nats.
        chance: mean of I over permutations of the attribute.
        share: ``(information - chance) / (entropy - chance)``; NaN if all tokens make the same choice, or all values of
            the attribute are different.
        fixed: fraction of tokens whose choice is the most frequent of their value in the other half of the windows;
            NaN with a single window.
        constant: likewise for the most frequent choice of all tokens.
    """

    kind: str
    round: int | None
    attribute: str
    entropy: float
    information: float
    chance: float
    share: float
    fixed: float
    constant: float


def entropy(counts: NDArray[Any]) -> float:
    """Return the entropy of a distribution given by counts, in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def mutual_information(choice: NDArray[np.int64], attribute: NDArray[np.int64]) -> float:
    """Return I(c; a) in nats, from nonnegative integers, [n] each."""
    number = int(choice.max()) + 1
    joint = np.bincount(attribute * number + choice)
    return entropy(np.bincount(choice)) + entropy(np.bincount(attribute)) - entropy(joint)


def fixed_agreement(
    choice: NDArray[np.int64], attribute: NDArray[np.int64], window: NDArray[np.int64]
) -> float:
    """Return the fraction of tokens that the best fixed choice per value predicts in windows it was not fitted on.

    Windows with even and odd numbers are predicted from each other; a value that the other half lacks gets the other
    half's most frequent choice. Returns NaN if a half is empty.
    """
    number, values, hits = int(choice.max()) + 1, int(attribute.max()) + 1, 0
    joint = attribute * number + choice
    for half in (0, 1):
        fit, test = window % 2 != half, window % 2 == half
        if not fit.any() or not test.any():
            return float("nan")
        counts = np.bincount(joint[fit], minlength=values * number).reshape(values, number)
        table = np.where(counts.any(axis=1), counts.argmax(axis=1), counts.sum(axis=0).argmax())
        hits += int((table[attribute[test]] == choice[test]).sum())
    return hits / len(choice)


def measure_dependence(
    kind: str,
    number: int,
    name: str,
    choice: NDArray[np.int64],
    attribute: NDArray[np.int64],
    window: NDArray[np.int64],
    *,
    seed: int = 0,
) -> Dependence:
    """Measure how much the choices of a round depend on an attribute; at least one token, [n] each.

    Args:
        kind: the pool.
        number: the round.
        name: name of the attribute.
        choice: the first choices.
        attribute: values from 0; few above the number of values, because they index tables.
        window: the window of each token.
        seed: seed of the permutations.
    """
    total, information, chance = _information(choice, attribute, seed)
    return Dependence(
        kind=kind,
        round=number,
        attribute=name,
        entropy=total,
        information=information,
        chance=chance,
        share=_share(total, information, chance),
        fixed=fixed_agreement(choice, attribute, window),
        constant=fixed_agreement(choice, np.zeros_like(attribute), window),
    )


def mean_over_rounds(measured: Sequence[Dependence]) -> Dependence:
    """Average the rounds of a pool and attribute, ignoring NaN; the share is that of the averages."""
    means = {
        name: _mean([getattr(item, name) for item in measured])
        for name in ("entropy", "information", "chance", "fixed", "constant")
    }
    share = _share(means["entropy"], means["information"], means["chance"])
    first = measured[0]
    return Dependence(kind=first.kind, round=None, attribute=first.attribute, share=share, **means)


def sample_rounds(choices: Sequence[Routing], vocab_size: int) -> Sequence[Routing]:
    """Return evenly spaced rounds of a pool's records, so that :data:`MAX_COUNTS` bounds :func:`counts_by_token`."""
    number = choices[0].num_modules + 1
    return choices[:: -(-len(choices) // max(1, MAX_COUNTS // (vocab_size * number)))]


def counts_by_token(choices: Sequence[Routing], ids: Tensor, mask: Tensor, vocab_size: int) -> Tensor:
    """Count tokens by round, ID, and first choice.

    Args:
        choices: records of one pool.
        ids: the tokens, int64 [B, T].
        mask: tokens to count, [B, T].
        vocab_size: V, above every ID.

    Returns:
        int32 [rounds, V, N+1], SKIP last.
    """
    number = choices[0].num_modules + 1
    first = torch.stack([choice.selected[..., 0] for choice in choices])  # (R, B, T)
    rounds = len(first)
    row = torch.arange(rounds, device=ids.device).view(-1, 1, 1) * vocab_size + ids  # (R, B, T)
    counts = torch.zeros(rounds * vocab_size * number, dtype=torch.int32, device=ids.device)
    counts.scatter_add_(0, (row * number + first).flatten(), mask.int().expand_as(row).flatten())
    return counts.view(rounds, vocab_size, number)


def dependence_of_counts(counts: NDArray[Any], *, seed: int = 0) -> float:
    """Return the share of the choices' entropy that the token's ID determines, over rounds, from [R, V, N+1] counts.

    It is the share of :func:`mean_over_rounds`: NaN if all tokens make the same choice, or all IDs are different.
    """
    measured = []
    for joint in counts.astype(np.int64):
        token, choice = np.nonzero(joint)
        if len(token):
            times = joint[token, choice]
            measured.append(_information(np.repeat(choice, times), np.repeat(token, times), seed))
    return _share(*np.mean(measured, axis=0)) if measured else float("nan")


def _information(
    choice: NDArray[np.int64], attribute: NDArray[np.int64], seed: int
) -> tuple[float, float, float]:
    """Return H(c), I(c; a), and the mean of I over permutations of the attribute, from [n] each."""
    generator = np.random.default_rng(seed)
    shuffled = [mutual_information(choice, generator.permutation(attribute)) for _ in range(PERMUTATIONS)]
    return entropy(np.bincount(choice)), mutual_information(choice, attribute), float(np.mean(shuffled))


def _share(total: float, information: float, chance: float) -> float:
    room = total - chance
    return float((information - chance) / room) if room > 1e-9 else float("nan")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else float("nan")
