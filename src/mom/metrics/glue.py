"""GLUE metrics, built from torchmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import (
    Accuracy,
    F1Score,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)
from torchmetrics.classification import BinaryMatthewsCorrCoef


class Matthews(BinaryMatthewsCorrCoef):
    """Matthews correlation, with 0 if it is undefined because all predictions or all labels are of one class.

    This is GLUE's definition (scikit-learn). torchmetrics returns a limit instead that depends on the class balance:
    0.026 for always predicting 1 on CoLA's validation set.
    """

    def compute(self) -> Tensor:
        confusion = self.confmat  # (2, 2), labels by predictions
        assert isinstance(confusion, Tensor)
        if (confusion.sum(0) == 0).any() or (confusion.sum(1) == 0).any():
            return torch.zeros((), device=confusion.device)
        return super().compute()


def build_metrics(names: Sequence[str], num_labels: int) -> MetricCollection:
    """Build metrics by name: ``accuracy``, ``f1`` (of class 1), ``matthews``, ``pearson``, ``spearman``."""
    builders: dict[str, Any] = {
        "accuracy": lambda: Accuracy(task="multiclass", num_classes=num_labels),
        "f1": lambda: F1Score(task="binary"),
        "matthews": Matthews,
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all targets and predictions.*")
        metrics: dict[str, Metric | MetricCollection] = {name: builders[name]() for name in names}
    return MetricCollection(metrics, compute_groups=False)


def percent(metrics: MetricCollection) -> dict[str, float]:
    """Return the metrics times 100, as papers report them; an undefined metric (all predictions equal) is 0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*variance of predictions or target is close to zero.*")
        values = metrics.compute()
    return {name: 100 * float(torch.nan_to_num(value)) for name, value in values.items()}
