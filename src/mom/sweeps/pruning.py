"""A trial of a search that ends itself when it is worse than the trials before it were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mom.runs.directory import RUN_DIR_VARIABLE
from mom.sweeps.study import PRUNED_AT, open_trial


class PruneTrial(Callback):
    """Tells the search every validation's metric and stops the run if the search's pruner says so.

    Of a run in phases only the main one counts: it is the one that trains in the run directory itself. A run
    that is stopped ends as if by Ctrl-C: its last checkpoint is there, and its status is ``interrupted``.

    Args:
        journal: the search's file (``search.journal``).
        trial: number of the trial.
        metric: what validation logs.
    """

    def __init__(self, journal: str, trial: int, metric: str = "val/loss") -> None:
        self._journal = journal
        self._trial = trial
        self._metric = metric
        self._stopping = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and ask whether to go on; the first process asks for all."""
        run_dir = os.environ.get(RUN_DIR_VARIABLE)
        is_main = run_dir is not None and Path(trainer.default_root_dir).resolve() == Path(run_dir).resolve()
        value = trainer.callback_metrics.get(self._metric)
        if trainer.state.fn != "fit" or trainer.sanity_checking or not is_main or value is None:
            return
        should_stop = self._report(trainer.global_step, float(value)) if trainer.is_global_zero else False
        self._stopping = bool(trainer.strategy.broadcast(should_stop))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop here, after the checkpoint of the validation was saved; at the end there is nothing to stop."""
        if self._stopping:
            raise KeyboardInterrupt

    def _report(self, step: int, value: float) -> bool:
        trial = open_trial(self._journal, self._trial)
        trial.report(value, step)
        if not trial.should_prune():
            return False
        trial.set_user_attr(PRUNED_AT, step)
        return True
