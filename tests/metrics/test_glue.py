"""GLUE's metrics, compared with numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mom.metrics.glue import build_metrics, percent


def test_official_metrics_times_100():
    truth = torch.tensor([1, 1, 1, 0, 0, 1, 0, 1])
    guess = torch.tensor([1, 0, 1, 0, 1, 1, 0, 1])
    tp, tn, fp, fn = 4, 2, 1, 1
    metrics = build_metrics(("accuracy", "f1", "matthews"), 2)
    metrics.update(guess, truth)
    found = percent(metrics)

    assert found["accuracy"] == pytest.approx(100 * 6 / 8)
    assert found["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews"] == pytest.approx(100 * expected)


def test_correlations_times_100():
    x, y = [1.0, 2.0, 3.0, 5.0], [2.0, 1.0, 4.0, 40.0]
    metrics = build_metrics(("pearson", "spearman"), 1)
    metrics.update(torch.tensor(x), torch.tensor(y))
    mean_x, mean_y = sum(x) / 4, sum(y) / 4
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))

    assert percent(metrics)["pearson"] == pytest.approx(100 * covariance / spread, rel=1e-5)
    assert percent(metrics)["spearman"] == pytest.approx(100 * (1 - 6 * 2 / (4 * 15)), rel=1e-5)


def test_predictions_that_are_all_alike_have_no_correlation():
    for names, guess, truth in (
        (("pearson", "spearman"), torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0])),
        (("matthews", "f1"), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 0, 1])),
        # Imbalanced classes, for which torchmetrics' own Matthews correlation is not 0; both ways round.
        (("matthews",), torch.ones(7, dtype=torch.int64), torch.tensor([0, 1, 1, 1, 1, 0, 1])),
        (("matthews",), torch.zeros(7, dtype=torch.int64), torch.tensor([0, 1, 1, 1, 1, 0, 1])),
        (("matthews",), torch.tensor([0, 1, 1, 1, 1, 0, 1]), torch.ones(7, dtype=torch.int64)),
    ):
        metrics = build_metrics(names, 2)
        metrics.update(guess, truth)
        assert set(percent(metrics).values()) == {0.0}
