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
from numpy.typing import NDArray

PERMUTATIONS = 3
"""Permutations over which the mutual information by chance is averaged."""


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
    generator = np.random.default_rng(seed)
    total, information = entropy(np.bincount(choice)), mutual_information(choice, attribute)
    shuffled = [mutual_information(choice, generator.permutation(attribute)) for _ in range(PERMUTATIONS)]
    chance = float(np.mean(shuffled))
    room = total - chance
    return Dependence(
        kind=kind,
        round=number,
        attribute=name,
        entropy=total,
        information=information,
        chance=chance,
        share=(information - chance) / room if room > 1e-9 else float("nan"),
        fixed=fixed_agreement(choice, attribute, window),
        constant=fixed_agreement(choice, np.zeros_like(attribute), window),
    )


def mean_over_rounds(measured: Sequence[Dependence]) -> Dependence:
    """Average the rounds of a pool and attribute, ignoring NaN; the share is that of the averages."""
    means = {
        name: _mean([getattr(item, name) for item in measured])
        for name in ("entropy", "information", "chance", "fixed", "constant")
    }
    room = means["entropy"] - means["chance"]
    share = (means["information"] - means["chance"]) / room if room > 1e-9 else float("nan")
    first = measured[0]
    return Dependence(kind=first.kind, round=None, attribute=first.attribute, share=share, **means)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else float("nan")
