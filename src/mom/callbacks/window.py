"""Base classes of statistics callbacks: when to measure, how to sum over a window and over ranks, where to log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mom.cost.estimate import Usage, flops_per_token
from mom.metrics.sums import Sums, Totals, add, collect
from mom.model import MoMConfig, MoMForCausalLM


class StepCallback(Callback):
    """A callback that can tell whether a micro-batch completed its optimizer step.

    Subclasses that override :meth:`on_train_batch_start` must call it.
    """

    _global_step_before: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Store the optimizer step that this micro-batch belongs to."""
        self._global_step_before = trainer.global_step

    def step_has_ended(self, trainer: Trainer) -> bool:
        """Return whether the micro-batch that has just ended completed its optimizer step."""
        return trainer.global_step != self._global_step_before


class WindowedStatistics(StepCallback):
    """Statistics of routing records over each logged optimizer step and over each validation.

    A training window is an optimizer step with all its micro-batches; only steps that Lightning logs
    (``trainer.log_every_n_steps``) are measured. A validation window is a complete validation; its metrics are logged
    under ``val/``. Sums are added up on the device, all-reduced over ranks, and read back once per window.

    A subclass measures a forward pass and turns totals into metrics. The step's outputs must contain ``routing``
    (detached records) and ``attention_mask`` ([B, T]).
    """

    def __init__(self) -> None:
        self._training: Sums | None = None
        self._validation: Sums | None = None
        self._measuring = False

    @abstractmethod
    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        """Return the sums of a forward pass, without reading back to the host; empty if there is nothing to measure."""

    @abstractmethod
    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        """Return metrics under their full names, from sums over the window and all ranks."""

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether the current optimizer step is measured: by default, if it is logged."""
        return logs_next_step(trainer)

    def start_window(self, *, training: bool) -> None:
        """Start a training or validation window: reset state that a subclass keeps besides the sums."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Decide whether to measure the optimizer step that this micro-batch belongs to."""
        super().on_train_batch_start(trainer, pl_module)
        self._measuring = self.is_due(trainer)
        if self._training is None:
            self.start_window(training=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Add this micro-batch; at the end of the window, log."""
        if not self._measuring:
            return
        self._training = self._add(self._training, pl_module, outputs)
        if self.step_has_ended(trainer):
            self._log(trainer, pl_module, self._training, prefix="", on_step=True)
            self._training = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the validation's window."""
        self._validation = None
        self.start_window(training=False)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Add this batch."""
        self._validation = self._add(self._validation, pl_module, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the averages over the validation."""
        self._log(trainer, pl_module, self._validation, prefix="val/", on_step=False)
        self._validation = None

    def _add(self, sums: Sums | None, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums | None:
        with torch.no_grad():
            measured = self.measure(pl_module, outputs)
        return add(sums, measured) if measured else sums

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, sums: Sums | None, *, prefix: str, on_step: bool
    ) -> None:
        if sums is None:
            return
        metrics = self.metrics(pl_module, collect(sums, partial(sum_over_ranks, trainer)))
        if on_step:
            self.log_step(trainer, pl_module, metrics)
        else:
            named = {prefix + name: value for name, value in metrics.items()}
            pl_module.log_dict(named, on_step=False, on_epoch=True, batch_size=1)

    def log_step(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        """Log the metrics of the optimizer step that has just ended."""
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)


def sum_over_ranks(trainer: Trainer, tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks; every rank has to call it."""
    if trainer.world_size == 1:
        return tensor
    total = trainer.strategy.reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def get_model_config(pl_module: LightningModule) -> MoMConfig:
    """Return the configuration of the model that a module trains."""
    return cast(MoMForCausalLM, pl_module.model).config


def skipped_in_a_row(pl_module: LightningModule) -> int:
    """Return the number of optimizer steps skipped since the last one that updated weights (``TrainingModule``)."""
    return cast(Any, pl_module).skipped_in_a_row


def pool_names(pl_module: LightningModule) -> tuple[str, ...]:
    """Return the names of the pools of the model that a module trains, in the order of a round."""
    return tuple(layout.name for layout in get_model_config(pl_module).pools())


def forward_flops(pl_module: LightningModule, length: float, usage: Usage) -> float:
    """Return the FLOPs of a forward pass per token, not counting a classifier's head.

    Args:
        pl_module: the module that trains the model.
        length: T, mean over tokens of their sequence length.
        usage: modules that a token takes in a step.
    """
    flops = flops_per_token(get_model_config(pl_module), length, usage)
    return flops.total if hasattr(pl_module.model, "lm_head") else flops.total - flops.head


def log_interval(trainer: Trainer) -> int:
    """Return ``trainer.log_every_n_steps``, at least 1."""
    return max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # Lightning sets it elsewhere


def logs_next_step(trainer: Trainer) -> bool:
    """Return whether the current optimizer step is logged: every ``log_every_n_steps``, and the last."""
    step = trainer.global_step + 1
    return step % log_interval(trainer) == 0 or step == trainer.max_steps


def is_logged_at_interval(trainer: Trainer, every_n_steps: int) -> bool:
    """Return whether the current step is the first logged step of an ``every_n_steps`` interval, or the last step."""
    step = trainer.global_step + 1
    if step == trainer.max_steps:
        return True
    before = step - log_interval(trainer)  # the logged step before this one
    return logs_next_step(trainer) and step // every_n_steps > before // every_n_steps
