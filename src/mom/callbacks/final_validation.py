"""A validation after the last step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Ends training with a validation, whatever ``val_check_interval`` is.

    Lightning validates before it stops when ``trainer.should_stop`` is set, so the final numbers are those of
    the final weights and the last step can become the best checkpoint.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Ask for the stop, and so for the validation, at ``max_steps``."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
