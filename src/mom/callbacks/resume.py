"""Save random states and early stopping in checkpoints, so that runs resume exactly."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.callbacks.ranks import gather

STOPPED_EARLY = "stopped_early"
"""Checkpoint key: whether training stopped early, before ``max_steps``."""


class ExactResume(Callback):
    """Saves the state that Lightning omits from checkpoints, so that a resumed run equals an uninterrupted one.

    Random states: every rank starts with the same seed, which initializes the same weights; before training, each rank
    but the first switches to its own seed, so that ranks drop out different positions. States are restored right before
    the first training batch, after startup has drawn its random numbers. Additional ranks keep their own seed.

    Epochs: after the last batch of an epoch, Lightning runs a validation before it ends the epoch. If a checkpoint was
    saved in one that is not due in the resumed run (such as the final one of a shorter run), it would train another
    batch first.

    Logged steps: in the same case, Lightning's number of the next logged step is one too low.

    Early stopping: Lightning saves the counters of ``EarlyStopping``, but not that it stopped. A run that stopped early
    does not continue training when it is resumed. Put this callback after ``EarlyStopping`` and before
    :class:`~mom.callbacks.checkpoints.LastCheckpoint`.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None
        self._stopped_early = False

    @property
    def state_key(self) -> str:
        """Key in checkpoints, kept from version 0.1.0."""
        return "RandomState"

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of all ranks, as byte tensors; every rank has to call it."""
        if self._states is not None:  # no batch has run since they were loaded
            return {"ranks": self._states}
        return {"ranks": gather({"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random states for the first batch."""
        self._states = state_dict["ranks"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save whether training stopped early."""
        checkpoint[STOPPED_EARLY] = trainer.should_stop and 0 <= trainer.global_step < trainer.max_steps

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load whether training stopped early."""
        self._stopped_early = checkpoint.get(STOPPED_EARLY, False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give each rank its own seed; end an epoch that is complete, and a run that had stopped early."""
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        _end_complete_epoch(trainer)
        if self._stopped_early:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Restore the random states once; those of GPUs only if their number has not changed."""
        states, self._states = self._states, None
        if states is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if states is None or trainer.global_rank >= len(states):
            return
        state = states[trainer.global_rank]
        torch.set_rng_state(state["cpu"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([cuda.cpu() for cuda in state["cuda"]])


def _end_complete_epoch(trainer: Trainer) -> None:
    """Start the next epoch if the checkpoint was saved after an epoch's last batch, in a validation that is not due.

    Lightning does this for checkpoints without such a validation (``_FitLoop.reset``, ``_TrainingEpochLoop.reset``).
    """
    loop = trainer.fit_loop.epoch_loop
    if not loop.restarted_on_last or not loop._num_ready_batches_reached():
        return
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    if not loop._should_check_val_fx(fetcher):
        loop.batch_progress.reset_on_run()
        loop.scheduler_progress.reset_on_run()
        loop.automatic_optimization.optim_progress.reset_on_run()
        loop.val_loop.batch_progress.total.reset()
        trainer.fit_loop.epoch_progress.increment_processed()
        trainer.fit_loop.epoch_progress.increment_completed()
