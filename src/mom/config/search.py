"""Options of the ``search`` group: hyperparameter search with Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mom.config.section import Section


@dataclass(frozen=True)
class SearchConfig(Section):
    """How Optuna samples the options of each trial.

    Args:
        sampler: ``tpe`` learns from earlier trials, ``random`` does not.
        num_trials: total number of trials, including those of an earlier start in the same directory.
        trials_at_once: trials sampled and started together.
        metric: a name in ``summary.json``.
        mode: whether to minimize or maximize the metric.
        pruner: ``median`` stops a trial whose metric is worse than the median of completed trials at the same
            step; None prunes nothing.
        startup_trials: random trials at the start; no trial is pruned before them.
        warmup_steps: optimizer steps during which no trial is pruned.
        seed: seed of the sampler.
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
        self._range("num_trials trials_at_once", ge=1)
        self._range("startup_trials warmup_steps", ge=0)
        self._range("seed", ge=0, le=2**32 - 1)
