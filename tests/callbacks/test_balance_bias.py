"""The routers' biases change once per optimizer step, by the loads of all its micro-batches."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import BalanceBias
from mom.model import MoMForCausalLM
from mom.model.losses import choice_counts
from tests.helpers.models import small_model, tokens
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch

RATE = 0.01


class Biases(Callback):
    """Records every router's bias after each micro-batch."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        stage = pl_module.model.model.stages[0]
        self.seen.append([part.router.balance_bias.clone() for part in (stage.attention, stage.ffn)])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_step_moves_by_the_counts_of_all_its_micro_batches(tmp_path, checkpointing):
    module = small_module(balance_bias_rate=RATE, num_ffn_modules=4, optimizer={"lr": 1e-2})
    if checkpointing:
        module.model.gradient_checkpointing_enable()
    biases, recorder = Biases(), Recorder()
    trainer = plain_trainer(
        tmp_path,
        [recorder, BalanceBias(), biases],
        max_steps=4,
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    trainer.fit(
        module, datamodule=FixedBatches([token_batch(seed, padded=seed % 3) for seed in range(8)], [])
    )
    expected = [torch.zeros(4), torch.zeros(5)]
    for step in range(4):
        assert all(map(torch.equal, biases.seen[2 * step], expected)), "not inside a window"
        for pool, name in enumerate(("attention", "ffn")):
            counts = [0] * len(expected[pool])
            for output in recorder.train_outputs[2 * step : 2 * step + 2]:
                for decided in output["routing"]:
                    for row, column in output["attention_mask"].nonzero().tolist():
                        for choice in getattr(decided, name).selected[row, column].tolist():
                            counts[choice] += 1
            mean = sum(counts) / len(counts)
            signs = torch.tensor([float((mean > count) - (mean < count)) for count in counts])
            expected[pool] = expected[pool] + RATE * signs
        for bias, wanted in zip(biases.seen[2 * step + 1], expected, strict=True):
            torch.testing.assert_close(bias, wanted)


def test_it_balances_without_the_loss(tmp_path):
    batches = [token_batch(seed, rows=8) for seed in range(40)]

    def busiest(rate: float) -> float:
        module = small_module(
            balance_bias_rate=rate, balance_coefficient=0.0, top_k=1, optimizer={"lr": 1e-30}
        )
        recorder = Recorder()
        callbacks = [recorder, BalanceBias()]
        trainer = plain_trainer(tmp_path, callbacks, max_steps=40, limit_val_batches=0)
        trainer.fit(module, datamodule=FixedBatches(batches, []))
        counts = sum(choice_counts(out["routing"], 4)[1] for out in recorder.train_outputs[-5:])
        return float(counts.max() / counts.float().mean())

    assert busiest(0.02) < 1.25 < 1.5 < busiest(0.0)


def test_without_a_rate_there_is_no_buffer():
    assert not [name for name, _ in small_model().named_buffers() if "balance_bias" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_saved_and_loaded_and_used_in_evaluation(tmp_path, dtype):
    model = small_model(balance_bias_rate=RATE)
    model.save_pretrained(tmp_path)
    again = MoMForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    router = again.model.stages[0].ffn.router
    torch.testing.assert_close(
        router.balance_bias.float(), model.model.stages[0].ffn.router.balance_bias, atol=1e-2, rtol=1e-2
    )
    ids = tokens(2, 8)
    if dtype == torch.float32:
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
        router.balance_bias.zero_()
        assert not torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
