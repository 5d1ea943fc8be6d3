"""``last.ckpt``: after every validation, at the end, and before stopping when asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

INSIDE_ACCUMULATION = "inside_accumulation"
"""Key of a checkpoint: whether it was taken inside an accumulation window, whose gradients it lacks."""


class LastCheckpoint(Checkpoint):
    """Keeps ``<directory>/last.ckpt``, from which the run can be resumed.

    Written after every validation (``ModelCheckpoint(save_last=True)`` does so only when the validation was
    the best so far), at the end of training, and, when a stop is requested, after the optimizer step under
    way. ``KeyboardInterrupt`` is raised before the next step: by then the step's metrics are logged and, if
    one was due, its validation is done and in the checkpoint, so that a resumed run leaves no gap.

    What was logged up to the checkpoint is on the disk before the file takes its name: a process killed at any
    moment has lost neither.

    Only between optimizer steps: a checkpoint holds no gradients, so one taken inside an accumulation window
    would lose those of its first micro-batches. After a validation inside a window it waits for the window's
    end. Checkpoints that others take there are marked (:data:`INSIDE_ACCUMULATION`).

    A stop that was requested on any rank stops all of them after the same step.

    Stands after every ``ModelCheckpoint`` in the list, so that their state in the file is of the same moment.

    Args:
        directory: the folder of the checkpoints.
        stop_requested: asked after every optimizer step.
    """

    def __init__(self, directory: str | Path, stop_requested: Callable[[], bool] = lambda: False) -> None:
        self.path = Path(directory) / "last.ckpt"
        self._stop_requested = stop_requested
        self._saved_step: int | None = None
        self._step_before: int | None = None
        self._due = False
        self._stopping = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop here if asked to; else remember which step this micro-batch belongs to."""
        if self._stopping:
            raise KeyboardInterrupt
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """After a whole optimizer step: save if asked to stop, or if a validation inside its window was."""
        if self._is_inside_accumulation(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self._stop_requested(), all=False):
            self._stopping = True
        if self._stopping or self._due:
            # Lightning logs the step once this hook has returned. Done a second time it changes nothing: the curve
            # leaves out a row that it has.
            trainer._logger_connector.update_train_step_metrics()
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each validation during training, once the step under way is whole."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self._is_inside_accumulation(trainer):
            self._due = True
        else:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, unless the last validation just did."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark what training cannot exactly go on from."""
        checkpoint[INSIDE_ACCUMULATION] = self._is_inside_accumulation(trainer)

    def _is_inside_accumulation(self, trainer: Trainer) -> bool:
        """Whether the micro-batch just trained on left its gradient for a later one to step with."""
        return self._step_before == trainer.global_step

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        self._due = False
        trainer.save_checkpoint(self.path)


class FinalValidation(Callback):
    """Ends training with a validation, whatever ``val_check_interval`` is.

    Lightning validates before it stops when ``trainer.should_stop`` is set, so the final numbers are those of
    the final weights and the last step can become the best checkpoint.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Ask for the stop, and so for the validation, at ``max_steps``."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
