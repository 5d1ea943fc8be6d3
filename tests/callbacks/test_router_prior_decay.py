"""The routers' prior goes in equal parts, and what was learned on top of it stays."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import RouterPriorDecay
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


class Priors(Callback):
    """Keeps the prior after every micro-batch, and what the optimizer made of it before it was taken from."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.seen.append(pl_module.model.model.stages[0].ffn.router.prior.detach().clone())


def priors(tmp_path, steps: int | None, lr: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    module = small_module(router_prior="ordered", optimizer={"lr": lr, "warmup_steps": 0})
    initial = module.model.model.stages[0].ffn.router.prior.detach().clone()
    before, after = Priors(), Priors()
    trainer = plain_trainer(
        tmp_path,
        [before, RouterPriorDecay(steps), after],
        max_steps=5,
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(10)], []))
    taken = [one - other for one, other in zip(before.seen, after.seen, strict=True)]
    return (after.seen if lr < 1e-12 else taken), initial


def test_it_is_gone_after_so_many_steps(tmp_path):
    seen, initial = priors(tmp_path, 4, lr=1e-30)
    for micro_batch, prior in enumerate(seen):
        step = (micro_batch + 1) // 2
        torch.testing.assert_close(prior, initial * (1 - min(step, 4) / 4), atol=1e-6, rtol=0)


def test_the_same_is_taken_whatever_was_learned(tmp_path):
    taken, initial = priors(tmp_path, 4, lr=1e-2)
    for micro_batch, part in enumerate(taken):
        due = micro_batch % 2 == 1 and micro_batch < 8
        torch.testing.assert_close(part, initial / 4 * due, atol=1e-6, rtol=0)


def test_without_steps_it_stays(tmp_path):
    seen, initial = priors(tmp_path, None, lr=1e-30)
    for prior in seen:
        torch.testing.assert_close(prior, initial, atol=1e-6, rtol=0)


def test_a_number_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="steps: 0; an integer of at least 1, or null"):
        RouterPriorDecay(0)
