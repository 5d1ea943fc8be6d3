"""Lightning module for classifiers and regressors, measured by GLUE's official metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torchmetrics import MetricCollection

from mom.metrics.glue import build_metrics, percent
from mom.metrics.sums import WeightedMean
from mom.model import MoMForSequenceClassification
from mom.training.module import TrainingModule, step_outputs


class ClassificationModule(TrainingModule):
    """Trains a :class:`MoMForSequenceClassification`.

    Logs the losses of :class:`TrainingModule` (``task_loss``, ``balance_loss``, ``z_loss``), and after each
    validation ``val/loss`` (the task loss), each metric times 100 as ``val/<metric>``, and their mean ``val/score``,
    which selects the best checkpoint. With several sets, metrics have the set's suffix (``val/accuracy_matched``).

    Args:
        model: the model to train, in place.
        optimizer: the fields of ``OptimizerConfig``.
        metrics: names of the metrics, see :func:`build_metrics`.
        sets: suffixes of the validation sets.
    """

    def __init__(
        self,
        model: MoMForSequenceClassification,
        optimizer: Mapping[str, Any],
        metrics: Sequence[str],
        sets: Sequence[str] = ("",),
    ) -> None:
        super().__init__(model, optimizer, task_loss="task_loss")
        self._sets = list(sets)
        self._metrics = nn.ModuleList(build_metrics(metrics, model.score.out_features) for _ in sets)
        self._val_loss = WeightedMean()

    def run_model(self, batch: Mapping[str, Tensor]) -> Any:
        """Run ``input_ids``, ``attention_mask`` [B, T] and, if given, ``labels`` [B]."""
        return self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch.get("labels"),
            output_routing=True,
        )

    def count_targets(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of rows."""
        return len(batch["labels"])

    def validation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Measure one batch of a validation set; return :func:`step_outputs`."""
        output = self.run_model(batch)
        self._val_loss.update(output.task_loss, self.count_targets(batch))
        self._set_metrics(dataloader_idx).update(self.predictions(output.logits), batch["labels"])
        return step_outputs(output, batch)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self._val_loss.reset()
        for index in range(len(self._sets)):
            self._set_metrics(index).reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of each set, and the score."""
        measured: dict[str, float] = {}
        for index, suffix in enumerate(self._sets):
            values = percent(self._set_metrics(index))
            measured |= {f"val/{name}{suffix}": value for name, value in values.items()}
        score = sum(measured.values()) / len(measured)
        logged = {"val/loss": float(self._val_loss.compute().mean), **measured, "val/score": score}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=1)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the predictions for a batch without labels."""
        return self.predictions(self.run_model(batch).logits)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return classes, int64 [B], or for a regression its values, float [B], from logits [B, num_labels]."""
        return logits.float().squeeze(-1) if self.model.config.num_labels == 1 else logits.argmax(dim=-1)

    def _set_metrics(self, index: int) -> MetricCollection:
        return cast(MetricCollection, self._metrics[index])
