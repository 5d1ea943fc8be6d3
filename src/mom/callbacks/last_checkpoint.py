"""``last.ckpt``: after every validation, at the end, and on Ctrl-C after a whole step."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only


class LastCheckpoint(Checkpoint):
    """Keeps ``<directory>/last.ckpt``, from which the run can be resumed.

    Written after every validation (``ModelCheckpoint(save_last=True)`` does so only when the validation was
    the best so far) and at the end of training. The first Ctrl-C lets the optimiser step under way finish,
    saves and then raises ``KeyboardInterrupt``: a checkpoint taken in the middle of an update would hold half
    of it. A second Ctrl-C stops at once and leaves the checkpoint as it was.

    Stands after every ``ModelCheckpoint`` in the list, so that their state in the file is of the same moment.

    Args:
        directory: the folder of the checkpoints.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / "last.ckpt"
        self._saved_step: int | None = None
        self._interrupted = False
        self._previous_handler: Any = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed since training began."""
        return self._interrupted

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over Ctrl-C, in the main thread (only there can Python do so)."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._interrupted = False
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        self._restore_handler()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back; the checkpoint on disk is the last good one and stays."""
        self._restore_handler()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Remember which step this micro-batch belongs to."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """After a whole optimiser step: stop here if asked to."""
        if self._interrupted and trainer.global_step > self._step_before:
            self._save(trainer)
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each validation during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, unless the last validation just did."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        _tell("\nInterrupted: finishing the step under way, then saving. Ctrl-C again stops at once.")

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None


@rank_zero_only
def _tell(message: str) -> None:
    print(message, flush=True)
