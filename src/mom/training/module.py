"""What every training of ours shares: a model, its optimizer, its losses in the log, its routing records."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from mom.callbacks.window import logs_next_step
from mom.model import MoMForCausalLM, MoMForSequenceClassification
from mom.model.losses import balance_loss
from mom.training.optimizer import build_adamw, build_schedule
from mom.training.sharding import is_sharded, shard


class TrainingModule(LightningModule):
    """Trains one of our models; a subclass says how a batch goes through it and what a validation measures.

    Logs ``train/loss`` (what is minimized), the losses it consists of, before their coefficients, and
    ``train/routing_loss``, what the routing's losses add to it with their coefficients, of each logged
    optimizer step, averaged over its micro-batches and ranks.

    The hyper-parameters hold plain values only (``model_config``, ``optimizer``), so a checkpoint of this
    module loads with ``torch.load(weights_only=True)`` and says what model it is of.

    Args:
        model: what to train, in place.
        optimizer: the fields of ``OptimizerConfig``.
        losses: names of the fields of the model's output to log under ``train/``; with a ``depth_target``,
            ``depth_loss`` is logged too.
    """

    def __init__(
        self,
        model: MoMForCausalLM | MoMForSequenceClassification,
        optimizer: Mapping[str, Any],
        losses: tuple[str, ...],
    ) -> None:
        super().__init__()
        # "logger": the whole resolved configuration is given to the loggers by whoever builds them.
        self.save_hyperparameters(
            {"model_config": model.config.to_dict(), "optimizer": dict(optimizer)}, logger=False
        )
        self.model = model
        if model.config.depth_target is not None and model.config.num_stages:
            losses = (*losses, "depth_loss")
        # A NaN must show in the curve, so the metrics must not drop it (torchmetrics' default).
        self._train_means = torch.nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in (*losses, "routing_loss")}
        )

    @abstractmethod
    def run_model(self, batch: Mapping[str, Any]) -> Any:
        """The model's output for a batch, with its losses and routing records."""

    def configure_model(self) -> None:
        """Shard the model where the strategy shards (``trainer=fsdp``); Lightning calls this on every start."""
        if self._device_mesh is not None and not is_sharded(self.model):
            shard(self.model, self._device_mesh["data_parallel"], self.trainer.strategy.root_device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """One micro-batch.

        Returns:
            ``loss``; ``routing``, the detached records; ``attention_mask`` [B, T], true for real tokens.
        """
        output = self.run_model(batch)
        self._balance_over_ranks(output, batch)
        if logs_next_step(self.trainer):
            config = self.model.config
            routing_loss = config.balance_coefficient * output.balance_loss
            routing_loss = routing_loss + config.z_loss_coefficient * output.z_loss
            if output.depth_loss is not None:
                routing_loss = routing_loss + config.depth_coefficient * output.depth_loss
            for name, mean in self._means():
                value = routing_loss if name == "routing_loss" else getattr(output, name)
                mean.update(value.detach())
        return {"loss": output.loss, **records(output, batch)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the losses of the whole optimizer step; its last micro-batch has just run."""
        if not logs_next_step(self.trainer):
            return
        for name, mean in self._means():
            self.log(f"train/{name}", mean.compute(), on_step=True, on_epoch=False, batch_size=1)
            mean.reset()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip; under ``bf16-mixed`` here, since Lightning refuses to with a fused optimizer.

        It fears gradients that are still scaled, which only float16 has.
        """
        if self.trainer.precision == "bf16-mixed" and gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW by groups; warm-up and cosine over the trainer's ``max_steps``."""
        trainer = self.trainer
        options = self.hparams["optimizer"]
        # The loss scaler of float16 unscales before clipping, which the fused kernel does not let it do.
        fused = trainer.strategy.root_device.type in ("cpu", "cuda") and trainer.precision != "16-mixed"
        optimizer = build_adamw(self.model, options, fused=fused)
        max_steps = trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
        scheduler = build_schedule(optimizer, options, max_steps)
        # "name": what LearningRateMonitor puts in front of the group's name, as in learning_rate/matrices.
        schedule: LRSchedulerConfigType = {
            "scheduler": scheduler,
            "interval": "step",
            "name": "learning_rate",
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _balance_over_ranks(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Put the balance loss over all ranks in the place of this rank's, for ``balance_scope: global``.

        Here and not in the model's forward, which must not wait for other ranks: in training every rank runs
        as many micro-batches, elsewhere (validation, generation) they need not.
        """
        config = self.model.config
        if config.balance_scope != "global" or not output.routing or self.trainer.world_size == 1:
            return
        mask = batch.get("attention_mask")
        balance = balance_loss(
            output.routing, config.num_rounds, mask, include_skip=config.balance_skip, scope="global"
        )
        output.loss = output.loss + config.balance_coefficient * (balance - output.balance_loss)
        output.balance_loss = balance

    def _means(self) -> list[tuple[str, MeanMetric]]:
        return [(name, cast(MeanMetric, mean)) for name, mean in self._train_means.items()]


def records(output: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The routing records without their graph, and which positions are tokens."""
    routing = tuple(
        type(record)(*(type(pool)(*(tensor.detach() for tensor in pool)) for pool in record))
        for record in output.routing
    )
    mask = batch.get("attention_mask")
    real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    return {"routing": routing, "attention_mask": real}
