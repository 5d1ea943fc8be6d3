"""Lightning modules for language models: next-token prediction, and summarization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from mom.data.token_files import bits_per_byte
from mom.metrics.sums import WeightedMean
from mom.model import MoMConfig, MoMForCausalLM
from mom.training.module import TrainingModule, step_outputs


class LanguageModelingModule(TrainingModule):
    """Trains a :class:`MoMForCausalLM` on next-token prediction.

    Logs the losses of :class:`TrainingModule` (``lm_loss``, ``balance_loss``, ``z_loss``), and after each validation
    ``val/loss`` (cross-entropy in nats, averaged over all predicted tokens), ``val/perplexity`` and
    ``val/bits_per_byte``. With several validation sets, these are those of all sets together, and each set has its own
    (``val/<name>/loss``, …).

    Args:
        model_config: the fields of :class:`MoMConfig`.
        optimizer: the fields of ``OptimizerConfig``.
        model: weights to start from; ``None`` initializes new ones.
        bytes_per_token: mean UTF-8 bytes of a validation token; if it is unknown (``None`` or 0),
            ``val/bits_per_byte`` is not logged.
        sets: ``bytes_per_token`` of each validation set by its name, in the order of the loaders, if there are several.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        model: MoMForCausalLM | None = None,
        bytes_per_token: float | None = None,
        sets: Mapping[str, float | None] | None = None,
    ) -> None:
        if model is None:
            model = MoMForCausalLM(MoMConfig.from_dict(dict(model_config)))
        super().__init__(model, optimizer, task_loss="lm_loss")
        self._bytes_per_token = bytes_per_token
        self._val_loss = WeightedMean()
        self._sets = dict(sets or {})
        self._set_losses = torch.nn.ModuleList(WeightedMean() for _ in self._sets)

    @property
    def validation_loss(self) -> Tensor:
        """Mean cross-entropy in nats over all tokens predicted in the last validation."""
        return self._val_loss.compute().mean

    @property
    def num_predicted(self) -> int:
        """Tokens predicted in the last validation."""
        return int(self._val_loss.compute().weight)

    def run_model(self, batch: Mapping[str, Any], output_logits: bool = False) -> Any:
        """Run ``input_ids`` and ``labels`` [B, T], with the batch's mask or positions, if any; logits take memory."""
        return self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            position_ids=batch.get("position_ids"),
            labels=batch["labels"],
            output_routing=True,
            output_logits=output_logits,
        )

    def count_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the number of predicted tokens."""
        return (batch["labels"][:, 1:] != -100).sum()

    def validation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Measure one validation batch; return :func:`step_outputs`."""
        output = self.run_model(batch)
        self._val_loss.update(output.lm_loss, self.count_targets(batch))
        if self._set_losses:
            mean = cast(WeightedMean, self._set_losses[dataloader_idx])
            mean.update(output.lm_loss, self.count_targets(batch))
        return step_outputs(output, batch)

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        self._val_loss.reset()
        for mean in self._set_losses:
            cast(WeightedMean, mean).reset()

    def on_validation_epoch_end(self) -> None:
        """Log the averages over the predicted tokens of all ranks."""
        metrics = _text_metrics("val", self.validation_loss, self._bytes_per_token)
        for (name, mean_bytes), mean in zip(self._sets.items(), self._set_losses, strict=True):
            metrics |= _text_metrics(f"val/{name}", cast(WeightedMean, mean).compute().mean, mean_bytes)
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)


def _text_metrics(prefix: str, loss: Tensor, bytes_per_token: float | None) -> dict[str, Tensor]:
    """Return the metrics of text with a mean loss in nats per token."""
    metrics = {f"{prefix}/loss": loss, f"{prefix}/perplexity": loss.exp()}
    if bytes_per_token:
        metrics[f"{prefix}/bits_per_byte"] = bits_per_byte(loss, bytes_per_token)
    return metrics


class SummarizationModule(LanguageModelingModule):
    """Trains a language model on summaries; ``val/score``, the negative ``val/loss``, selects the best checkpoint."""

    def on_validation_epoch_end(self) -> None:
        """Log the averages over all tokens of the summaries, and the score."""
        super().on_validation_epoch_end()
        self.log("val/score", -self.validation_loss, on_step=False, on_epoch=True, batch_size=1)
