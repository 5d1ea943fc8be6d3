"""A training that ended before its last step has ended for good."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

STOPPED_EARLY = "stopped_early"
"""Key of a checkpoint: whether training ended with it before ``max_steps``."""


class StoppedEarly(Callback):
    """Keeps in the last checkpoint that early stopping ended the training; a resumed run then trains no further.

    Lightning keeps what ``EarlyStopping`` has counted, but not that it stopped. Stands in the list behind the
    callbacks that stop, and before the one that writes the last checkpoint.
    """

    def __init__(self) -> None:
        self._stopped = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write down whether training ends here."""
        checkpoint[STOPPED_EARLY] = trainer.should_stop and 0 <= trainer.global_step < trainer.max_steps

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take it up."""
        self._stopped = checkpoint.get(STOPPED_EARLY, False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End before the first step."""
        if self._stopped:
            trainer.should_stop = True
