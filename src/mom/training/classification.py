"""A classifier, or a regressor, as Lightning trains it and measures it by GLUE's official metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import (
    MeanMetric,
    MetricCollection,
)

from mom.metrics.glue import build_metrics, percent
from mom.model import MoMForSequenceClassification
from mom.model.losses import routing_losses
from mom.training.module import TrainingModule, records


class ClassificationModule(TrainingModule):
    """Trains a :class:`MoMForSequenceClassification`.

    Logs the losses as :class:`TrainingModule` does (``task_loss``, ``balance_loss``, ``z_loss``), and over
    each validation ``val/loss`` (the task's, all classes weighted alike), each metric as ``val/<metric>``
    times 100, with the set's suffix where there are several (``val/accuracy_matched``), and ``val/score``,
    the mean of them, by which the best checkpoint is chosen.

    Args:
        model: what to train, in place.
        optimizer: the fields of ``OptimizerConfig``.
        metrics: their names, see :func:`build_metrics`.
        sets: suffixes of the validation sets.
        class_weights: of each class in the training loss; None weighs all alike.
    """

    def __init__(
        self,
        model: MoMForSequenceClassification,
        optimizer: Mapping[str, Any],
        metrics: Sequence[str],
        sets: Sequence[str] = ("",),
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(model, optimizer, losses=("loss", "task_loss", "balance_loss", "z_loss"))
        self._sets = list(sets)
        count = model.score.out_features
        self._metrics = nn.ModuleList(build_metrics(metrics, count) for _ in sets)
        self._val_loss = MeanMetric(nan_strategy="disable")
        self._class_weights = None if class_weights is None else list(class_weights)

    def run_model(self, batch: Mapping[str, Tensor]) -> Any:
        """Losses, logits and records of ``input_ids``, ``attention_mask`` [B, T] and ``labels`` [B].

        In training the classes may be weighted; the mean is then over the weights, as PyTorch has it.
        """
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch.get("labels"),
            output_routing=True,
        )
        if self._class_weights is None or not self.training:
            return output
        weights = torch.tensor(self._class_weights, device=output.logits.device)
        loss = F.cross_entropy(output.logits.float(), batch["labels"], weight=weights)
        losses = routing_losses(self.model.config, output.routing, batch["attention_mask"], loss)
        for name, value in {"task_loss": loss, **losses}.items():
            setattr(output, name, value)
        return output

    def validation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """One batch of a validation set."""
        output = self.run_model(batch)
        # Summed by hand, as MeanMetric forgets its weights when it may not drop NaNs (torchmetrics 1.9).
        self._val_loss.update(output.task_loss.expand(len(batch["labels"])))
        self._of_set(dataloader_idx).update(self.predictions(output.logits), batch["labels"])
        return {"loss": output.loss, **records(output, batch)}

    def on_validation_epoch_start(self) -> None:
        """Start the metrics anew."""
        self._val_loss.reset()
        for index in range(len(self._sets)):
            self._of_set(index).reset()

    def on_validation_epoch_end(self) -> None:
        """Log every metric of every set, and the score."""
        measured: dict[str, float] = {}
        for index, suffix in enumerate(self._sets):
            found = percent(self._of_set(index))
            measured |= {f"val/{name}{suffix}": value for name, value in found.items()}
        score = sum(measured.values()) / len(measured)
        logged = {"val/loss": float(self._val_loss.compute()), **measured, "val/score": score}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """The predictions for a batch without labels."""
        return self.predictions(self.run_model(batch).logits)

    def predictions(self, logits: Tensor) -> Tensor:
        """Classes, int64 [B], or values, float [B], of logits [B, num_labels]."""
        return logits.float().squeeze(-1) if self.model.config.num_labels == 1 else logits.argmax(dim=-1)

    def _of_set(self, index: int) -> MetricCollection:
        return cast(MetricCollection, self._metrics[index])
