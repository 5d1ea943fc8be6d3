"""Callbacks that make a resumed run equal to an undisturbed one."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.callbacks.ranks import gather

STOPPED_EARLY = "stopped_early"
"""Key of a checkpoint: whether training ended with it before ``max_steps``."""


class RandomState(Callback):
    """Keeps PyTorch's random state of all ranks in checkpoints; a resumed run drops out what the whole would.

    Every rank starts with the same seed, which initializes the same weights; before training each rank but
    the first moves to a seed of its own, so that they do not drop out the same positions. States are put back
    just before the first training batch, after everything that start-up draws. Where there are now more
    ranks than states, the new ranks go on with their own seed.
    """

    def __init__(self) -> None:
        self._to_restore: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states of every rank, as byte tensors; all ranks have to call it."""
        return {"ranks": gather({"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states for the first batch."""
        self._to_restore = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Part from the other ranks."""
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Put the states back, once; those of GPUs only where there are as many as there were."""
        states, self._to_restore = self._to_restore, None
        if states is None or trainer.global_rank >= len(states):
            return
        state = states[trainer.global_rank]
        torch.set_rng_state(state["cpu"].cpu())
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


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
