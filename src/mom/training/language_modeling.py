"""A language model as Lightning trains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from mom.callbacks.window import logs_next_step
from mom.model import MoMConfig, MoMForCausalLM
from mom.training.optimizer import build_adamw, build_schedule


class LanguageModelingModule(LightningModule):
    """Trains a :class:`MoMForCausalLM` on next-token prediction.

    Logs ``train/loss`` (what is minimised), ``train/lm_loss``, ``train/balance_loss`` and ``train/z_loss``
    (before their coefficients) of each logged optimiser step, averaged over its micro-batches and ranks; and
    over each validation ``val/loss`` (language-model cross-entropy in nats, every predicted token counted
    once), ``val/perplexity`` and ``val/bits_per_byte``.

    The hyper-parameters hold plain values only (``model_config``, ``optimizer``), so a checkpoint of this
    module loads with ``torch.load(weights_only=True)`` and says what model it is of.

    Args:
        model_config: the fields of :class:`MoMConfig`.
        optimizer: the fields of ``OptimizerConfig``.
        model: weights to start from; ``None`` initialises new ones.
        bytes_per_token: mean UTF-8 bytes of a validation token; ``None`` logs no ``val/bits_per_byte``.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        model: MoMForCausalLM | None = None,
        bytes_per_token: float | None = None,
    ) -> None:
        super().__init__()
        # "logger": the whole resolved configuration is given to the loggers by whoever builds them.
        self.save_hyperparameters(
            {"model_config": dict(model_config), "optimizer": dict(optimizer)}, logger=False
        )
        self.model = MoMForCausalLM(MoMConfig.from_dict(dict(model_config))) if model is None else model
        self._bytes_per_token = bytes_per_token
        # A NaN must show in the curve, so the metrics must not drop it (torchmetrics' default).
        self._train_means = torch.nn.ModuleDict(
            {
                name: MeanMetric(nan_strategy="disable")
                for name in ("loss", "lm_loss", "balance_loss", "z_loss")
            }
        )
        # Two sums, as MeanMetric forgets its weights when it may not drop NaNs (torchmetrics 1.9).
        self._val_nats = SumMetric(nan_strategy="disable")
        self._val_tokens = SumMetric(nan_strategy="disable")

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """One micro-batch: ``input_ids`` and ``labels`` [B, T], perhaps ``attention_mask``.

        Returns:
            ``loss``; ``routing``, the detached records; ``attention_mask`` [B, T], true for real tokens.
        """
        output = self._forward(batch)
        if logs_next_step(self.trainer):
            for name, mean in self._means():
                mean.update(getattr(output, name).detach())
        return {"loss": output.loss, **_records(output, batch)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the losses of the whole optimiser step; its last micro-batch has just run."""
        if not logs_next_step(self.trainer):
            return
        for name, mean in self._means():
            self.log(f"train/{name}", mean.compute(), on_step=True, on_epoch=False, batch_size=1)
            mean.reset()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """One batch of the validation; returns what :meth:`training_step` returns."""
        output = self._forward(batch)
        predicted = (batch["labels"][:, 1:] != -100).sum()
        self._val_nats.update(output.lm_loss * predicted)
        self._val_tokens.update(predicted)
        return {"loss": output.loss, **_records(output, batch)}

    def on_validation_epoch_start(self) -> None:
        """Start the average anew."""
        self._val_nats.reset()
        self._val_tokens.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the average over every predicted token of the validation, on all ranks together."""
        loss = self._val_nats.compute() / self._val_tokens.compute()
        metrics = {"val/loss": loss, "val/perplexity": loss.exp()}
        if self._bytes_per_token is not None:
            metrics["val/bits_per_byte"] = loss / (math.log(2) * self._bytes_per_token)
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)

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

    def _means(self) -> list[tuple[str, MeanMetric]]:
        return [(name, cast(MeanMetric, mean)) for name, mean in self._train_means.items()]

    def _forward(self, batch: Mapping[str, Tensor]) -> Any:
        return self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            labels=batch["labels"],
            output_routing=True,
            output_logits=False,
        )


def _records(output: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The routing records without their graph, and which positions are tokens."""
    routing = tuple(
        type(record)(*(type(pool)(*(tensor.detach() for tensor in pool)) for pool in record))
        for record in output.routing
    )
    mask = batch.get("attention_mask")
    real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
    return {"routing": routing, "attention_mask": real}
