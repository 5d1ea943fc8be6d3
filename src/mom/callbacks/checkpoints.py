"""Save ``last.ckpt`` after every validation, at the end, and before stopping on request; end with a validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mom.callbacks.ranks import gather
from mom.callbacks.window import StepCallback
from mom.runs.signals import Interrupted

RESULTS = "results"
"""Checkpoint key: the final metrics, in a checkpoint with which training has ended."""
INSIDE_ACCUMULATION = "inside_accumulation"
"""Checkpoint key: whether it was saved during gradient accumulation and so lacks the accumulated gradients."""


class LastCheckpoint(StepCallback, Checkpoint):
    """Saves ``<directory>/last.ckpt``, from which the run can be resumed.

    It is written after every validation (``ModelCheckpoint(save_last=True)`` writes it only after the best one), at the
    end of training, and, when a signal requests a stop, after the current optimizer step. :class:`Interrupted` is
    raised before the next step: by then the step's metrics are logged and a validation that was due is done and in the
    checkpoint, so a resumed run leaves no gap. A stop requested on any rank stops all of them after the same step.

    The last checkpoint of a training holds its results, so a run that is killed after it loses nothing, and a finished
    run that is resumed repeats nothing. After the last step, it waits for the last validation.

    Metrics are written to disk before the checkpoint is renamed into place, so a process killed at any moment loses
    neither.

    Checkpoints hold no gradients, so saving during gradient accumulation would lose those of the first micro-batches.
    After a validation during accumulation, the checkpoint waits for the end of the optimizer step. Checkpoints that
    other callbacks save there are marked (:data:`INSIDE_ACCUMULATION`).

    Put it after every ``ModelCheckpoint`` in the list, so that their state in the file is from the same moment.

    Args:
        directory: the directory of the checkpoints.
        stop_requested: called after every optimizer step; returns the number of the signal, or 0.
        collect: returns the final metrics; called at the end.

    Attributes:
        results: the final metrics; ``None`` before the end.
        stopping: number of the signal that requested a stop on any rank; 0 if none did.
    """

    def __init__(
        self,
        directory: str | Path,
        stop_requested: Callable[[], int] = lambda: 0,
        collect: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.path = Path(directory) / "last.ckpt"
        self.results: dict[str, float] | None = None
        self.stopping = 0
        self._stop_requested = stop_requested
        self._collect = collect
        self._saved_step: int | None = None
        self._due = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop here if a stop was requested."""
        if self.stopping:
            raise Interrupted(self.stopping)
        super().on_train_batch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """After an optimizer step, save if a stop was requested or a validation during it was waiting."""
        if not self.step_has_ended(trainer):
            return
        self._listen(trainer)
        if (self.stopping or self._due) and not _has_ended(trainer):
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
        self._listen(trainer)
        if self._saved_step != trainer.global_step or self.results is None:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the results, and mark a checkpoint that training cannot resume from exactly."""
        checkpoint[INSIDE_ACCUMULATION] = self.results is None and not self.step_has_ended(trainer)
        if self.results is not None:
            checkpoint[RESULTS] = self.results

    def _listen(self, trainer: Trainer) -> None:
        """Learn whether a stop was requested on any rank."""
        number = self._stop_requested()
        if not self.stopping and trainer.strategy.reduce_boolean_decision(bool(number), all=False):
            self.stopping = max(gather(number))

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        self._due = False
        if _has_ended(trainer):
            self.results = self._collect()
        trainer.save_checkpoint(self.path)


def _has_ended(trainer: Trainer) -> bool:
    """Return whether training has taken its last step, or a stop was requested."""
    return trainer.should_stop or trainer.global_step >= trainer.max_steps > 0


class FinalValidation(Callback):
    """Ends training with a validation, regardless of ``val_check_interval``.

    Lightning validates before it stops if ``trainer.should_stop`` is set, so the final numbers are those of the final
    weights, and the last step can become the best checkpoint.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Request the stop, and with it the validation, at ``max_steps``."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
