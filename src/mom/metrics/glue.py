"""The metrics of GLUE, by torchmetrics."""

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
    """Matthews correlation, 0 where it is undefined: one class alone predicted, or alone there.

    That is GLUE's official reading (scikit-learn's). torchmetrics puts a limit in its place that depends on how uneven
    the classes are: 0.026 for answering 1 throughout CoLA's validation set.
    """

    def compute(self) -> Tensor:
        confusion = self.confmat  # [2, 2], labels by predictions
        assert isinstance(confusion, Tensor)
        if (confusion.sum(0) == 0).any() or (confusion.sum(1) == 0).any():
            return torch.zeros((), device=confusion.device)
        return super().compute()


def build_metrics(names: Sequence[str], num_labels: int) -> MetricCollection:
    """Metrics by name: ``accuracy``, ``f1`` (of class 1), ``matthews``, ``pearson``, ``spearman``.

    Args:
        names: which.
        num_labels: classes.
    """
    makers: dict[str, Any] = {
        "accuracy": lambda: Accuracy(task="multiclass", num_classes=num_labels),
        "f1": lambda: F1Score(task="binary"),
        "matthews": Matthews,
        "pearson": PearsonCorrCoef,
        "spearman": SpearmanCorrCoef,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all targets and predictions.*")
        made: dict[str, Metric | MetricCollection] = {name: makers[name]() for name in names}
    return MetricCollection(made, compute_groups=False)


def percent(metrics: MetricCollection) -> dict[str, float]:
    """The metrics times 100, as papers report them; one that is undefined (all predictions alike) is 0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*variance of predictions or target is close to zero.*")
        found = metrics.compute()
    return {name: 100 * float(torch.nan_to_num(value)) for name, value in found.items()}
