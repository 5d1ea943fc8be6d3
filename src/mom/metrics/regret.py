"""The regret of choices in hindsight: how often another choice had been better for this text, and by how many nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-3
"""Nats below which two sums of losses count as equal, because of rounding."""


@dataclass(frozen=True)
class Swap:
    """Every other choice for the first choice of a token in a step.

    Attributes:
        kind: the pool.
        round: the round, counted over all stages.
        chosen: the first choice; the number of modules means SKIP.
        is_skip: whether that is SKIP.
        changes: by other choice, the change in nats of the summed loss of the token and all later ones of its window.
    """

    kind: str
    round: int
    chosen: int
    is_skip: bool
    changes: dict[int, float]

    @property
    def best(self) -> int:
        """The best of all choices, the token's own in a tie."""
        other = min(self.changes, key=self.changes.__getitem__, default=self.chosen)
        return other if self.changes.get(other, 0.0) < -TOLERANCE else self.chosen

    @property
    def regret(self) -> float:
        """Nats that the best choice saves, at least 0."""
        return 0.0 if self.best == self.chosen else -self.changes[self.best]


@dataclass(frozen=True)
class Regret:
    """The mean over swaps.

    Attributes:
        swaps: number of steps.
        better: fraction in which another choice had been better.
        regret: mean nats that the best choice saves, 0 where it was chosen.
        change: mean change in nats over all other choices: the price of an arbitrary one.
        too_shallow: fraction in which SKIP was chosen and a module had been best.
        too_deep: fraction in which a module was chosen and SKIP had been best.
        wrong_module: fraction in which another module had been best.
    """

    swaps: int
    better: float
    regret: float
    change: float
    too_shallow: float
    too_deep: float
    wrong_module: float


def mean_regret(swaps: Sequence[Swap], skip: int) -> Regret:
    """Average over swaps of one pool, at least one; ``skip`` is its index of SKIP."""
    wrong = [swap for swap in swaps if swap.best != swap.chosen]
    shallow = sum(swap.is_skip for swap in wrong)
    deep = sum(swap.best == skip for swap in wrong)
    changes = [change for swap in swaps for change in swap.changes.values()]
    n = len(swaps)
    return Regret(
        swaps=n,
        better=len(wrong) / n,
        regret=sum(swap.regret for swap in swaps) / n,
        change=float(np.mean(changes)) if changes else float("nan"),
        too_shallow=shallow / n,
        too_deep=deep / n,
        wrong_module=(len(wrong) - shallow - deep) / n,
    )


@dataclass(frozen=True)
class BestPath:
    """The best path found for a token, where a path is its first choice in every round of some pools.

    Attributes:
        kind: the pool; ``None`` for all pools.
        gain: nats that it saves in the summed loss of the token and all later ones, at least 0.
        complete: whether all paths were tried; otherwise, single swaps as long as one helps.
        own_modules: modules on the token's own path.
        best_modules: modules on the best path.
        swaps: choices in which the two differ.
    """

    kind: str | None
    gain: float
    complete: bool
    own_modules: int
    best_modules: int
    swaps: int
