"""A search over options (``search=tpe``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mom.config.section import Section


@dataclass(frozen=True)
class SearchConfig(Section):
    """How Optuna draws the options of each trial.

    Args:
        sampler: ``tpe`` learns from the trials before, ``random`` does not.
        num_trials: how many in all, those of an earlier start included.
        trials_at_once: how many are drawn and started together.
        metric: a name in ``summary.json``.
        mode: whether small or large is good.
        pruner: ``median`` ends a trial that at some validation is worse than half of the completed ones were at the
            same step; None ends none.
        startup_trials: trials that are drawn at random first, and before which none is pruned.
        warmup_steps: optimizer steps in which no trial is pruned.
        seed: of the draws.
    """

    group: ClassVar[str] = "search"

    sampler: Literal["tpe", "random"] = "tpe"
    num_trials: int = 20
    trials_at_once: int = 1
    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    pruner: Literal["median"] | None = "median"
    startup_trials: int = 5
    warmup_steps: int = 0
    seed: int = 0

    def _check(self) -> None:
        self._range("num_trials trials_at_once", least=1)
        self._range("startup_trials warmup_steps", least=0)
        self._range("seed", least=0, most=2**32 - 1)
