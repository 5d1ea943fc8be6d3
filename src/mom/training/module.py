"""Base class of our Lightning modules: optimizer, sharding, gradient clipping, and logged losses."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from mom.callbacks import Schedule
from mom.callbacks.window import logs_next_step, sum_over_ranks
from mom.interop.weights import MEASURED_WITH, VALIDATED
from mom.metrics.sums import WeightedMean
from mom.model import MoMForCausalLM, MoMForSequenceClassification
from mom.model.losses import COEFFICIENTS, add_losses, balance_loss, loss_names
from mom.training.averaging import StepMean
from mom.training.optimizer import build_optimizer, build_schedule
from mom.training.sharding import is_sharded, shard

log = logging.getLogger(__name__)

SKIPPED = "skipped_in_a_row"
"""Checkpoint key: optimizer steps skipped right before it was saved."""


class TrainingModule(LightningModule):
    """Trains one of our models; subclasses run a batch and measure validation.

    Logs for each optimizer step the task's loss and the routing terms without their coefficients,
    ``train/routing_loss``, the sum of these with their coefficients, and ``train/loss``, the sum of the task's loss and
    ``train/routing_loss``. All are means over the targets or tokens of all micro-batches and ranks, so a micro-batch
    with more of them counts more. The gradient is that of the losses of all micro-batches and ranks, weighted by their
    targets (:class:`StepMean`).

    The hyperparameters are plain values (``model_config``, ``optimizer``), so a checkpoint loads with
    ``torch.load(weights_only=True)`` and describes its model.

    Args:
        model: the model to train, in place.
        optimizer: the fields of an ``OptimizerSection``.
        task_loss: the field of the model's output that holds the task's loss.

    Attributes:
        skipped_in_a_row: optimizer steps skipped since the last one that updated weights, because of a non-finite
            gradient. Callbacks that change parameters or buffers after a step must not do so after a skipped one.
    """

    def __init__(
        self,
        model: MoMForCausalLM | MoMForSequenceClassification,
        optimizer: Mapping[str, Any],
        task_loss: str,
    ) -> None:
        super().__init__()
        # logger=False: build_loggers logs the full resolved configuration instead.
        self.save_hyperparameters(
            {"model_config": model.config.to_dict(), "optimizer": dict(optimizer)}, logger=False
        )
        self.model = model
        self.skipped_in_a_row = 0
        self._task_loss = task_loss
        self._validated_step = -1
        self._validated: dict[str, float] = {}
        self._step_mean = StepMean()
        names = [task_loss, "routing_loss", *loss_names(model.config)]
        self._train_means = torch.nn.ModuleDict({name: WeightedMean() for name in names})

    @abstractmethod
    def run_model(self, batch: Mapping[str, Any]) -> Any:
        """Return the model's output for a batch, with its losses and routing records."""

    @abstractmethod
    def count_targets(self, batch: Mapping[str, Any]) -> Tensor | int:
        """Return the number of targets that the task's loss is a mean over."""

    def configure_model(self) -> None:
        """Shard the model if the strategy does (``trainer=fsdp``); Lightning calls this on every start."""
        if self._device_mesh is not None and not is_sharded(self.model):
            shard(self.model, self._device_mesh["data_parallel"], self.trainer.strategy.root_device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Train on one micro-batch; return :func:`step_outputs`."""
        output = self.run_model(batch)
        self._balance_over_ranks(output, batch)
        outputs = step_outputs(output, batch)
        weight = self._step_mean.weight(self.trainer, self.count_targets(batch), output.loss.device)
        if weight is not None:
            outputs["loss"] = self._weighted(output, weight)
        if logs_next_step(self.trainer):
            terms = {name: getattr(output, name) for name in COEFFICIENTS}
            reported = {name: term.detach() for name, term in terms.items() if term is not None}
            routing_loss = add_losses(self.model.config, torch.zeros_like(output.loss), reported)
            num_targets, num_tokens = self.count_targets(batch), outputs["attention_mask"].sum()
            for name, mean in self._means():
                value = routing_loss if name == "routing_loss" else getattr(output, name)
                mean.update(value, num_targets if name == self._task_loss else num_tokens)
        return outputs

    def on_train_start(self) -> None:
        """Warn if an epoch is shorter than an optimizer step; give callbacks the metrics of a resumed checkpoint.

        One that was saved in the validation at the end of an epoch comes before the callbacks that read its metrics.
        """
        batches, wanted = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        if batches < wanted:
            _warn(
                f"trainer.accumulate_grad_batches={wanted} is more than the {batches} batches of an epoch, so an "
                f"optimizer step has only {batches}"
            )
        if self._validated:
            self._validated_step = self.trainer.global_step
            self.trainer.callback_metrics.update(
                {
                    name if name.startswith("val/") else f"val/{name}": torch.tensor(
                        value, device=self.device
                    )
                    for name, value in self._validated.items()
                }
            )

    def on_validation_start(self) -> None:
        """Note the step whose weights the metrics are of."""
        self._validated_step = self.trainer.global_step

    def on_after_backward(self) -> None:
        """Correct the gradient once the last micro-batch of the optimizer step has been added."""
        if not self.trainer.fit_loop._should_accumulate():
            self._step_mean.correct(self.trainer, list(self.parameters()))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the losses of the optimizer step, whose last micro-batch has just run."""
        self.skipped_in_a_row += 1  # until the optimizer updates weights
        if not logs_next_step(self.trainer):
            return
        losses = {name: mean.compute().mean for name, mean in self._means()}
        losses["loss"] = losses[self._task_loss] + losses["routing_loss"]
        for _, mean in self._means():
            mean.reset()
        for name, loss in losses.items():
            self.log(f"train/{name}", loss, on_step=True, on_epoch=False, batch_size=1)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, under ``bf16-mixed`` without Lightning.

        Lightning rejects fused optimizers there because gradients may still be scaled, but only float16 scales them.
        """
        if self.trainer.precision == "bf16-mixed" and gradient_clip_val is not None:
            is_norm = gradient_clip_algorithm in (None, "norm")
            clip = torch.nn.utils.clip_grad_norm_ if is_norm else torch.nn.utils.clip_grad_value_
            clip(self.parameters(), gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer over parameter groups, and the schedule over the trainer's ``max_steps``."""
        trainer = self.trainer
        options = self.hparams["optimizer"]
        # float16's gradient scaler unscales before clipping, which fused optimizers do not allow.
        fused = trainer.strategy.root_device.type in ("cpu", "cuda") and trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.model, options, fused=fused)
        optimizer.register_step_post_hook(self._note_update)
        max_steps = trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
        scheduler = build_schedule(optimizer, options, max_steps)
        # LearningRateMonitor prefixes the name of each group with "name", as in learning_rate/matrices.
        schedule: LRSchedulerConfigType = {
            "scheduler": scheduler,
            "interval": "step",
            "name": "learning_rate",
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the skipped steps, the metrics of these weights, and the model options that schedules have replaced.

        ``hyper_parameters`` has the configured options, with which training resumes.
        """
        checkpoint[SKIPPED] = self.skipped_in_a_row
        checkpoint[VALIDATED] = {}
        if self._validated_step == self.trainer.global_step:
            checkpoint[VALIDATED] = validation_metrics(self.trainer.callback_metrics)
        schedules = [
            callback
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Schedule)
        ]
        checkpoint[MEASURED_WITH] = {}
        for schedule in schedules:  # the last of several schedules of a scalar wins
            checkpoint[MEASURED_WITH] |= schedule.model_options(self.model.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the number of skipped steps, and the metrics of the weights if they had just been validated."""
        self.skipped_in_a_row = checkpoint.get(SKIPPED, 0)
        self._validated = checkpoint.get(VALIDATED, {})

    def _note_update(self, optimizer: Optimizer, *_: Any) -> None:
        """Note that the optimizer has run; one without gradients, or not called by the loss scaler, updates nothing."""
        if any(
            parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]
        ):
            self.skipped_in_a_row = 0

    def _balance_over_ranks(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Replace the rank's balance loss with that over all ranks, for ``balance_scope: global``.

        The model's forward pass cannot do this, because it must not wait for other ranks: ranks run equally many
        micro-batches in training, but not necessarily in validation or generation.
        """
        config = self.model.config
        if not self._balances_over_ranks(output):
            return
        mask = batch.get("attention_mask")
        balance = balance_loss(
            output.routing, config.num_rounds, mask, include_skip=config.balance_skip, scope="global"
        )
        if config.balance_coefficient != 0:
            output.loss = output.loss + config.balance_coefficient * (balance - output.balance_loss)
        output.balance_loss = balance

    def _balances_over_ranks(self, output: Any) -> bool:
        is_global = self.model.config.balance_scope == "global" and bool(output.routing)
        return is_global and self.trainer.world_size > 1

    def _weighted(self, output: Any, weight: Tensor) -> Tensor:
        """Weight the loss of a micro-batch; a balance loss over all ranks has the mean of their weights."""
        loss = output.loss * weight
        coefficient = self.model.config.balance_coefficient
        if self._balances_over_ranks(output) and coefficient != 0:
            shared = sum_over_ranks(self.trainer, weight.clone()) / self.trainer.world_size
            loss = loss + coefficient * (shared - weight) * output.balance_loss
        return loss

    def _means(self) -> list[tuple[str, WeightedMean]]:
        return [(name, cast(WeightedMean, mean)) for name, mean in self._train_means.items()]


def step_outputs(output: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a step's outputs for Lightning and the callbacks.

    Returns:
        ``loss``; ``routing``, the detached records; ``attention_mask``, boolean [B, T], true for real tokens.
    """
    routing = tuple(
        type(record)(*(type(pool)(*(tensor.detach() for tensor in pool)) for pool in record))
        for record in output.routing
    )
    mask = batch.get("attention_mask")
    real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    return {"loss": output.loss, "routing": routing, "attention_mask": real}


def validation_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the ``val/*`` metrics of a trainer, those of depth, routing, and compute without the prefix."""
    shortened = tuple(f"val/{group}/" for group in ("depth", "routing", "compute"))
    return {
        name.removeprefix("val/") if name.startswith(shortened) else name: float(value)
        for name, value in metrics.items()
        if name.startswith("val/")
    }


@rank_zero_only
def _warn(message: str) -> None:
    log.warning(message)
