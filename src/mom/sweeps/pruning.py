"""Callback that ends a trial of a search if it is worse than earlier trials."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mom.runs.directory import RUN_DIR_VARIABLE
from mom.sweeps.study import PRUNED_AT, open_trial


class PruneTrial(Callback):
    """Reports the metric of every validation to the search, and stops the run if the search prunes the trial.

    In a run with several phases only the main phase counts, which trains in the run directory itself. A pruned run
    ends as after Ctrl-C: with its last checkpoint, and the status ``interrupted``.

    Args:
        journal: the search's file (``search.journal``).
        trial: number of the trial.
        metric: name of a logged validation metric.
    """

    def __init__(self, journal: str, trial: int, metric: str = "val/loss") -> None:
        self._journal = journal
        self._trial = trial
        self._metric = metric
        self._stopping = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric and decide on all ranks whether to prune; only rank 0 reads the study."""
        run_dir = os.environ.get(RUN_DIR_VARIABLE)
        is_main = run_dir is not None and Path(trainer.default_root_dir).resolve() == Path(run_dir).resolve()
        value = trainer.callback_metrics.get(self._metric)
        if trainer.state.fn != "fit" or trainer.sanity_checking or not is_main or value is None:
            return
        should_stop = self._report(trainer.global_step, float(value)) if trainer.is_global_zero else False
        self._stopping = bool(trainer.strategy.broadcast(should_stop))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop a pruned trial only now, when the validation's checkpoint has been saved."""
        if self._stopping:
            raise KeyboardInterrupt

    def _report(self, step: int, value: float) -> bool:
        trial = open_trial(self._journal, self._trial)
        trial.report(value, step)
        if not trial.should_prune():
            return False
        trial.set_user_attr(PRUNED_AT, step)
        return True
