"""A language model as Lightning trains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchmetrics import SumMetric

from mom.model import MoMConfig, MoMForCausalLM
from mom.training.module import TrainingModule, records


class LanguageModelingModule(TrainingModule):
    """Trains a :class:`MoMForCausalLM` on next-token prediction.

    Logs the losses as :class:`TrainingModule` does (``lm_loss``, ``balance_loss``, ``z_loss``), and over each
    validation ``val/loss`` (language-model cross-entropy in nats, every predicted token counted once),
    ``val/perplexity`` and ``val/bits_per_byte``.

    Args:
        model_config: the fields of :class:`MoMConfig`.
        optimizer: the fields of ``OptimizerConfig``.
        model: weights to start from; ``None`` initializes new ones.
        bytes_per_token: mean UTF-8 bytes of a validation token; ``None`` or 0 (not known) logs no
            ``val/bits_per_byte``.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        model: MoMForCausalLM | None = None,
        bytes_per_token: float | None = None,
    ) -> None:
        if model is None:
            model = MoMForCausalLM(MoMConfig.from_dict(dict(model_config)))
        super().__init__(model, optimizer, losses=("loss", "lm_loss", "balance_loss", "z_loss"))
        self._bytes_per_token = bytes_per_token
        # Two sums, as MeanMetric forgets its weights when it may not drop NaNs (torchmetrics 1.9).
        self._val_nats = SumMetric(nan_strategy="disable")
        self._val_tokens = SumMetric(nan_strategy="disable")

    @property
    def validation_loss(self) -> Tensor:
        """Mean cross-entropy in nats over every token that the last validation predicted."""
        return self._val_nats.compute() / self._val_tokens.compute()

    @property
    def num_predicted(self) -> int:
        """Tokens that the last validation predicted."""
        return int(self._val_tokens.compute())

    def run_model(self, batch: Mapping[str, Tensor]) -> Any:
        """Losses and records of ``input_ids`` and ``labels`` [B, T], perhaps with an ``attention_mask``."""
        return self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            labels=batch["labels"],
            output_routing=True,
            output_logits=False,
        )

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """One batch of the validation; returns what :meth:`training_step` returns."""
        output = self.run_model(batch)
        predicted = (batch["labels"][:, 1:] != -100).sum()
        self._val_nats.update(output.lm_loss * predicted)
        self._val_tokens.update(predicted)
        return {"loss": output.loss, **records(output, batch)}

    def on_validation_epoch_start(self) -> None:
        """Start the average anew."""
        self._val_nats.reset()
        self._val_tokens.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the average over every predicted token of the validation, on all ranks together."""
        loss = self.validation_loss
        metrics = {"val/loss": loss, "val/perplexity": loss.exp()}
        if self._bytes_per_token:
            metrics["val/bits_per_byte"] = loss / (math.log(2) * self._bytes_per_token)
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)


class SummarizationModule(LanguageModelingModule):
    """A language model trained on summaries; logs ``val/score``, -``val/loss``, to choose the best by."""

    def on_validation_epoch_end(self) -> None:
        """Log the average over every token of a summary, and the score."""
        super().on_validation_epoch_end()
        self.log("val/score", -self.validation_loss, on_step=False, on_epoch=True, batch_size=1)
