"""The classifier's metrics and losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mom.metrics.glue import build_metrics, percent
from mom.model import MoMForSequenceClassification
from mom.training.classification import ClassificationModule
from tests.helpers.models import small_config
from tests.helpers.runs import OPTIMIZER, FixedBatches, plain_trainer


def module(labels: int = 2, **options) -> ClassificationModule:
    torch.manual_seed(0)
    model = MoMForSequenceClassification(small_config(num_labels=labels, initializer_range=0.5))
    return ClassificationModule(model, OPTIMIZER, **{"metrics": ("accuracy",), **options})


def batch(labels, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(61, (len(labels), 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


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
        # Uneven classes, for which torchmetrics' own Matthews correlation is not 0; each other way round too.
        (("matthews",), torch.ones(7, dtype=torch.int64), torch.tensor([0, 1, 1, 1, 1, 0, 1])),
        (("matthews",), torch.zeros(7, dtype=torch.int64), torch.tensor([0, 1, 1, 1, 1, 0, 1])),
        (("matthews",), torch.tensor([0, 1, 1, 1, 1, 0, 1]), torch.ones(7, dtype=torch.int64)),
    ):
        metrics = build_metrics(names, 2)
        metrics.update(guess, truth)
        assert set(percent(metrics).values()) == {0.0}


def test_a_validation_of_two_sets(tmp_path):
    trained = module(3, sets=("_matched", "_mismatched"))
    first, second = batch([0, 1, 2]), batch([2, 2], seed=1)
    trained.eval()
    guesses = [trained.model(**{**b, "labels": None}).logits.argmax(-1) for b in (first, second)]
    losses = [trained.model(**b).task_loss.detach() for b in (first, second)]
    trainer = plain_trainer(tmp_path, [])
    loaders = [torch.utils.data.DataLoader([b], batch_size=None) for b in (first, second)]
    trainer.validate(trained, dataloaders=loaders, verbose=False)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    hits = [
        float((g == b["labels"]).float().mean()) * 100 for g, b in zip(guesses, (first, second), strict=True)
    ]

    assert measured["val/accuracy_matched"] == pytest.approx(hits[0])
    assert measured["val/accuracy_mismatched"] == pytest.approx(hits[1])
    assert measured["val/score"] == pytest.approx(sum(hits) / 2)
    assert measured["val/loss"] == pytest.approx(float(3 * losses[0] + 2 * losses[1]) / 5, rel=1e-5)


def test_training_learns(tmp_path):
    trained = module()
    given = batch([0, 1, 1, 0])
    before = float(trained.model(**given).task_loss.detach())
    trainer = plain_trainer(tmp_path, [], max_steps=10, limit_val_batches=0)
    trainer.fit(trained, datamodule=FixedBatches([given] * 10, []))

    assert float(trained.model(**given).task_loss.detach()) < 0.5 * before
    assert {"train/loss", "train/task_loss", "train/balance_loss"} <= set(trainer.callback_metrics)
