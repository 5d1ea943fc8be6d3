"""Steps with a non-finite gradient are stopped or skipped, and the message names the cause."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import NonFinite
from mom.callbacks.non_finite import MAX_SKIPPED_IN_A_ROW, NonFiniteError
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


class Break(Callback):
    """Makes a module's output or a gradient non-finite in given training batches."""

    def __init__(self, batches: set[int], gradient: bool = False) -> None:
        self.batches, self.gradient, self.batch = batches, gradient, -1

    def on_fit_start(self, trainer, pl_module) -> None:
        part = pl_module.model.model.stages[0].ffn
        if self.gradient:
            part.pool.fc_weight.register_hook(lambda g: g * float("inf") if self.batch in self.batches else g)
        else:
            part.register_forward_hook(
                lambda _, __, output: output * float("nan") if self.batch in self.batches else None
            )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batch = batch_idx


class Weights(Callback):
    """Records a weight after every micro-batch."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.seen.append(pl_module.model.model.norm.weight.detach().clone())


def fit(tmp_path, callbacks, batches: int = 6, **options) -> None:
    data = FixedBatches([token_batch(seed) for seed in range(batches)], [])
    trainer = plain_trainer(
        tmp_path,
        callbacks,
        max_steps=batches,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        **options,
    )
    trainer.fit(small_module(optimizer={"warmup_steps": 0}), datamodule=data)


def test_stop_names_the_step_the_rank_and_the_module_and_leaves_the_weights(tmp_path):
    weights = Weights()
    with pytest.raises(NonFiniteError) as error:
        fit(tmp_path, [Break({3}), NonFinite("stop"), weights], accumulate_grad_batches=2)
    assert str(error.value).startswith(
        "step 2: the loss is not finite; rank 0: first in the output of model.model.stages.0.ffn;"
    )
    assert len(weights.seen) == 3 and all(weight.isfinite().all() for weight in weights.seen)


def test_a_gradient_that_alone_is_not_finite_is_named_by_its_parameter(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 2: the gradient is not finite.*stages\.0\.ffn\.pool"):
        fit(tmp_path, [Break({1}, gradient=True), NonFinite("stop")])


def test_skip_continues_without_the_step(tmp_path, caplog):
    weights = Weights()
    with caplog.at_level(logging.WARNING, "mom"):
        fit(tmp_path, [Break({2, 3}), NonFinite("skip"), weights])
    seen = weights.seen
    assert torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[3], seen[4])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["step 3", "step 4"]


def test_skipping_forever_is_an_error(tmp_path):
    with pytest.raises(
        NonFiniteError, match=f"step {MAX_SKIPPED_IN_A_ROW}: .*{MAX_SKIPPED_IN_A_ROW} steps in a row"
    ):
        fit(tmp_path, [Break(set(range(99))), NonFinite("skip")], batches=MAX_SKIPPED_IN_A_ROW + 5)


def test_another_action_is_rejected():
    with pytest.raises(ValueError, match="action must be stop or skip, got ignore"):
        NonFinite("ignore")
