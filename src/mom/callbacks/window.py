"""The frame that statistics callbacks share: when to measure, how to add up, where to log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.cost.estimate import Usage, flops_per_token
from mom.metrics.sums import Sums, Totals, add, collect
from mom.model import MoMConfig, MoMForCausalLM


class WindowedStatistics(Callback):
    """Statistics of routing records over one logged optimizer step and over each validation.

    A training window is one optimizer step, all its micro-batches together; only steps that Lightning logs
    (``trainer.log_every_n_steps``) are measured. A validation window is the whole validation; its metrics
    stand under ``val/``. Sums are added up on the device, all-reduced over ranks, and read back once per
    window.

    A subclass measures one forward pass and turns totals into metrics. The step's outputs must hold
    ``routing`` (detached records) and ``attention_mask`` ([B, T]).
    """

    def __init__(self) -> None:
        self._training: Sums | None = None
        self._validation: Sums | None = None
        self._measuring = False

    @abstractmethod
    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        """Sums of one forward pass; no reading back to the host. Empty: nothing to say about this model."""

    @abstractmethod
    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        """Metrics with their full names, from sums over the window and all ranks."""

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the optimizer step under way is measured: those that are logged."""
        return logs_next_step(trainer)

    def start_window(self, *, training: bool) -> None:  # most have nothing to do
        """A window begins, of training or of a validation: forget what was kept beside its sums."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Decide whether the optimizer step that this micro-batch belongs to is one that logs."""
        # global_step still counts the steps before this one; it grows with the window's last micro-batch.
        self._step_before = trainer.global_step
        self._measuring = self.is_due(trainer)
        if self._training is None:
            self.start_window(training=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Add this micro-batch; after the window's last one, log."""
        if not self._measuring:
            return
        self._training = self._added(self._training, pl_module, outputs)
        if trainer.global_step > self._step_before:
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
        self._validation = self._added(self._validation, pl_module, outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the average over the validation."""
        self._log(trainer, pl_module, self._validation, prefix="val/", on_step=False)
        self._validation = None

    def _added(
        self, sums: Sums | None, pl_module: LightningModule, outputs: Mapping[str, Any]
    ) -> Sums | None:
        with torch.no_grad():
            measured = self.measure(pl_module, outputs)
        return add(sums, measured) if measured else sums

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, sums: Sums | None, *, prefix: str, on_step: bool
    ) -> None:
        if sums is None:
            return
        strategy = trainer.strategy
        reduce = (lambda tensor: strategy.reduce(tensor, reduce_op="sum")) if trainer.world_size > 1 else None
        metrics = self.metrics(pl_module, collect(sums, reduce))
        if on_step:
            self.log_step(trainer, pl_module, metrics)
        else:
            named = {prefix + name: value for name, value in metrics.items()}
            pl_module.log_dict(named, on_step=False, on_epoch=True, batch_size=1)

    def log_step(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        """Log the metrics of the optimizer step that has just ended."""
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)


def config_of(pl_module: LightningModule) -> MoMConfig:
    """The configuration of the model that a module trains."""
    return cast(MoMForCausalLM, pl_module.model).config


def forward_flops(pl_module: LightningModule, length: float, usage: Usage) -> float:
    """Operations of a forward per token of the module's model; a classifier's head is as good as free.

    Args:
        pl_module: what is trained.
        length: T, mean over tokens of the length of their sequence.
        usage: modules that a token takes in a step.
    """
    flops = flops_per_token(config_of(pl_module), length, usage)
    return flops.total if hasattr(pl_module.model, "lm_head") else flops.total - flops.head


def log_interval(trainer: Trainer) -> int:
    """``trainer.log_every_n_steps``, at least 1."""
    return max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # Lightning sets it elsewhere


def logs_next_step(trainer: Trainer) -> bool:
    """Whether the optimizer step under way is logged: every ``log_every_n_steps``, and the last."""
    step = trainer.global_step + 1
    return step % log_interval(trainer) == 0 or step == trainer.max_steps


def is_logged_at_interval(trainer: Trainer, every_n_steps: int) -> bool:
    """Whether the step under way is the first that is logged in an interval of ``every_n_steps``, or the last."""
    step = trainer.global_step + 1
    if step == trainer.max_steps:
        return True
    before = step - log_interval(trainer)  # the logged step before this one
    return logs_next_step(trainer) and step // every_n_steps > before // every_n_steps
