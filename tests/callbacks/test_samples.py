"""Samples are greedy continuations, and do not affect training."""

from __future__ import annotations

import json

import pytest
import torch

from mom.callbacks import GeneratedSamples
from mom.data.language_modeling import LanguageModelingDataModule
from mom.errors import UsageError
from mom.model import MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule
from tests.helpers.runs import OPTIMIZER, plain_trainer, tiny_request


def trained(folder, callbacks) -> tuple[LanguageModelingModule, LanguageModelingDataModule]:
    config = tiny_request(folder, model={"dropout": 0.1})
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    torch.manual_seed(0)
    model = MoMForCausalLM(config.model_config(data.vocab_size))
    module = LanguageModelingModule(model.config.to_dict(), OPTIMIZER, model)
    trainer = plain_trainer(folder, callbacks, max_steps=4, val_check_interval=2, limit_val_batches=1)
    trainer.fit(module, datamodule=data)
    return module, data


def test_samples_are_greedy_and_leave_the_training_as_it_is(tmp_path):
    callback = GeneratedSamples(prompts=["a token"], max_new_tokens=4)
    module, data = trained(tmp_path, [callback])
    without, _ = trained(tmp_path, [])
    for left, right in zip(module.parameters(), without.parameters(), strict=True):
        assert torch.equal(left, right)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    ids = data.tokenizer("a token", add_special_tokens=False)["input_ids"]
    wanted: list[int] = []
    module.model.eval()
    with torch.no_grad():
        while len(wanted) < 4 and data.tokenizer.eos_token_id not in wanted:
            logits = module.model(input_ids=torch.tensor([ids + wanted])).logits
            wanted.append(int(logits[0, -1].argmax()))
    assert rows[-1]["continuation"] == data.tokenizer.decode(wanted, skip_special_tokens=True)
    again = GeneratedSamples(prompts=["a token"])
    again.load_state_dict(callback.state_dict())
    assert again.state_dict() == callback.state_dict()


def test_a_prompt_that_is_too_long_is_rejected_before_training(tmp_path):
    with pytest.raises(UsageError, match=r"callbacks\.samples\.prompts must fit the model's 16 positions"):
        trained(tmp_path, [GeneratedSamples(prompts=["round " * 16], max_new_tokens=4)])
    assert not (tmp_path / "samples.jsonl").exists()
