"""Validation of the classifier against metrics computed by hand, and its training."""

from __future__ import annotations

import pytest
import torch

from mom.model import MoMForSequenceClassification
from mom.training.classification import ClassificationModule
from tests.helpers.models import small_config
from tests.helpers.runs import OPTIMIZER, FixedBatches, plain_trainer


def module(labels: int = 2, balance_coefficient: float = 0.01, **options) -> ClassificationModule:
    torch.manual_seed(0)
    model = MoMForSequenceClassification(
        small_config(num_labels=labels, initializer_range=0.5, balance_coefficient=balance_coefficient)
    )
    return ClassificationModule(model, OPTIMIZER, **{"metrics": ("accuracy",), **options})


def batch(labels, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(61, (len(labels), 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


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


def test_training_losses_are_means_over_rows_and_tokens(tmp_path):
    trained, twin = module(balance_coefficient=0.5), module(balance_coefficient=0.5)
    batches = [batch([0, 1, 1, 0]), batch([1], seed=1)]
    with torch.no_grad():
        outputs = [twin.model(**given) for given in batches]
    trainer = plain_trainer(tmp_path, [], max_steps=1, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(trained, datamodule=FixedBatches(batches, []))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}

    first, second = (float(output.task_loss) for output in outputs)
    task_loss = (4 * first + second) / 5
    first, second = (float(output.balance_loss) for output in outputs)
    balance_loss = (26 * first + 5 * second) / 31  # two of 28 and two of 7 positions are padding
    assert logged["train/task_loss"] == pytest.approx(task_loss, rel=1e-5)
    assert logged["train/balance_loss"] == pytest.approx(balance_loss, rel=1e-5)
    coefficients = trained.model.config.balance_coefficient, trained.model.config.z_loss_coefficient
    routing_loss = coefficients[0] * balance_loss + coefficients[1] * logged["train/z_loss"]
    assert logged["train/loss"] == pytest.approx(task_loss + routing_loss, rel=1e-5)
