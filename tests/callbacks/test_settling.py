"""Choices settle once, by what each token ID took in the steps before."""

from __future__ import annotations

from collections import Counter

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mom.callbacks import ExactResume, SettleChoices
from mom.model.routers.router import Router
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch

STEPS = 4
SIZES = {"attention": 3, "ffn": 4}


def settling_module(**changes):
    return small_module(router="linear", top_k=1, settle_steps=STEPS, optimizer={"lr": 1e-2}, **changes)


def tables(module):
    routers = [part for part in module.model.modules() if isinstance(part, Router)]
    return [router.settled.clone() for router in routers if router.settled is not None]


def test_each_token_keeps_what_it_took_most_often_in_the_second_half_of_the_steps(tmp_path):
    module, recorder = settling_module(num_ffn_modules=4), Recorder()
    batches = [token_batch(seed, rows=4, padded=seed % 3) for seed in range(12)]
    trainer = plain_trainer(
        tmp_path, [recorder, SettleChoices()], max_steps=6, accumulate_grad_batches=2, limit_val_batches=0
    )
    trainer.fit(module, datamodule=FixedBatches(batches, []))
    for pool, table in zip(SIZES, tables(module), strict=True):
        for h, row in enumerate(table):
            counts: dict[int, Counter] = {}
            for batch, output in list(zip(batches, recorder.train_outputs, strict=True))[STEPS : 2 * STEPS]:
                chosen = getattr(output["routing"][h], pool).selected[..., 0]
                for place in output["attention_mask"].nonzero().tolist():
                    token = int(batch["input_ids"][*place])
                    counts.setdefault(token, Counter())[int(chosen[*place])] += 1
            for token, kept in enumerate(row.tolist()):
                taken = {i: n for i, n in counts.get(token, {}).items() if i < SIZES[pool]}  # without SKIP
                assert taken[kept] == max(taken.values()) if taken else kept == -1
    later = recorder.train_outputs[-1]["routing"][0].ffn.selected[..., 0]
    kept = tables(module)[1][0][batches[-1]["input_ids"]]
    took = (kept >= 0) & (later < SIZES["ffn"])
    assert took.any() and torch.equal(later[took], kept[took].long())


def test_a_run_resumed_while_counting_settles_as_the_undisturbed_one(tmp_path):
    def trainer(folder):
        keep = ModelCheckpoint(folder, filename="at-{step}", every_n_train_steps=3, save_top_k=-1)
        callbacks = [SettleChoices(), ExactResume(), keep]
        return plain_trainer(folder, callbacks, max_steps=6, limit_val_batches=0, enable_checkpointing=True)

    batches = [token_batch(seed) for seed in range(6)]
    full, resumed = settling_module(), settling_module()
    trainer(tmp_path / "whole").fit(full, datamodule=FixedBatches(batches, []))
    trainer(tmp_path / "resumed").fit(
        resumed,
        datamodule=FixedBatches(batches[3:] * 2, []),
        ckpt_path=tmp_path / "whole" / "at-step=3.ckpt",
    )
    assert all((table >= 0).any() for table in tables(full))
    assert all((value == resumed.state_dict()[name]).all() for name, value in full.state_dict().items())


def test_choices_that_have_settled_stay(tmp_path):
    module = settling_module()
    for table in (part.settled for part in module.model.modules() if isinstance(part, Router)):
        table[0, 5] = 1
    before = tables(module)
    trainer = plain_trainer(tmp_path, [SettleChoices()], max_steps=STEPS, limit_val_batches=0)
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(STEPS)], []))
    assert all(map(torch.equal, tables(module), before))
