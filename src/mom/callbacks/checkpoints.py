"""Save ``last.ckpt`` after every validation, at the end, and before stopping on request; end with a validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mom.callbacks.window import StepCallback

INSIDE_ACCUMULATION = "inside_accumulation"
"""Checkpoint key: whether it was saved during gradient accumulation and so lacks the accumulated gradients."""


class LastCheckpoint(StepCallback, Checkpoint):
    """Saves ``<directory>/last.ckpt``, from which the run can be resumed.

    It is written after every validation (``ModelCheckpoint(save_last=True)`` writes it only after the best one), at the
    end of training, and, when a stop is requested, after the current optimizer step. ``KeyboardInterrupt`` is raised
    before the next step: by then the step's metrics are logged and a validation that was due is done and in the
    checkpoint, so a resumed run leaves no gap. A stop requested on any rank stops all of them after the same step.

    Metrics are written to disk before the checkpoint is renamed into place, so a process killed at any moment loses
    neither.

    Checkpoints hold no gradients, so saving during gradient accumulation would lose those of the first micro-batches.
    After a validation during accumulation, the checkpoint waits for the end of the optimizer step. Checkpoints that
    other callbacks save there are marked (:data:`INSIDE_ACCUMULATION`).

    Put it after every ``ModelCheckpoint`` in the list, so that their state in the file is from the same moment.

    Args:
        directory: the directory of the checkpoints.
        stop_requested: called after every optimizer step.
    """

    def __init__(self, directory: str | Path, stop_requested: Callable[[], bool] = lambda: False) -> None:
        self.path = Path(directory) / "last.ckpt"
        self._stop_requested = stop_requested
        self._saved_step: int | None = None
        self._due = False
        self._stopping = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop here if a stop was requested."""
        if self._stopping:
            raise KeyboardInterrupt
        super().on_train_batch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """After an optimizer step, save if a stop was requested or a validation during it was waiting."""
        if not self.step_has_ended(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self._stop_requested(), all=False):
            self._stopping = True
        if self._stopping or self._due:
            # Lightning logs the step after this hook. Logging it twice is harmless: the curve skips duplicate rows.
            trainer._logger_connector.update_train_step_metrics()
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each validation during training, or once the current optimizer step has ended."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.step_has_ended(trainer):
            self._save(trainer)
        else:
            self._due = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, unless the last validation just did."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark a checkpoint that training cannot resume from exactly."""
        checkpoint[INSIDE_ACCUMULATION] = not self.step_has_ended(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        self._due = False
        trainer.save_checkpoint(self.path)


class FinalValidation(Callback):
    """Ends training with a validation, regardless of ``val_check_interval``.

    Lightning validates before it stops if ``trainer.should_stop`` is set, so the final numbers are those of the final
    weights, and the last step can become the best checkpoint.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Request the stop, and with it the validation, at ``max_steps``."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
