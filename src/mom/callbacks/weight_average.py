"""Average the weights over training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy

from mom.callbacks.window import skipped_in_a_row
from mom.errors import UsageError


class WeightAverage(EMAWeightAveraging):
    """Keeps a running average of the weights, which validations measure and checkpoints hold as the model.

    Lightning's callback with these differences: the model is also the average when figures and samples are made after a
    validation; skipped optimizer steps do not count; buffers are the model's own, since their average means nothing;
    and the model becomes the average only after the last checkpoint, so that a run can be lengthened exactly.

    A checkpoint's ``state_dict`` is the average, so that everything which reads the checkpoint (evaluation, export, the
    next phase) uses it; ``current_model_state`` has the weights from which training resumes.

    Args:
        decay: weight of the old average in the new one; ``None``: the mean of all weights since ``first_step``.
        every_n_steps: optimizer steps between two updates of the average.
        first_step: optimizer step from which on the average is updated.
    """

    def __init__(self, decay: float | None = 0.999, every_n_steps: int = 1, first_step: int = 0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be null or at least 0 and less than 1, got {decay}")
        for name, value, lowest in (("every_n_steps", every_n_steps, 1), ("first_step", first_step, 0)):
            if value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        super().__init__(
            use_buffers=False,
            decay=0.0 if decay is None else decay,
            update_every_n_steps=every_n_steps,
            update_starting_at_step=first_step,
        )
        if decay is None:
            self._kwargs["avg_fn"] = None  # PyTorch's mean

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model.

        Raises:
            UsageError: the model will be sharded.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UsageError("callbacks.weight_average cannot be combined with trainer=fsdp")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the model's device; until now, both were on the CPU."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *given: Any) -> None:
        """Update the average after an optimizer step that changed the weights."""
        if not skipped_in_a_row(pl_module):
            super().on_train_batch_end(trainer, pl_module, *given)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing; see :meth:`on_validation_start`."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing; see :meth:`on_validation_end`."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model."""
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the model's own weights back, after the other callbacks and before those that save checkpoints."""
        super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing; see :meth:`on_fit_end`."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        super().on_train_end(trainer, pl_module)
