"""TRL's ``SFTTrainer`` computes the language model's loss and its gradients, packed or not."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.helpers.checkpoints import small_tokenizer
from tests.helpers.hugging_face import gradients
from tests.helpers.models import small_model
from tests.interop.test_trainer import Gradients

TEXTS = ["def first(x):\n    return x", "import os", "class Empty:\n    pass", "x = 1"]


@pytest.mark.parametrize("packing", [False, True])
def test_loss_and_gradients_equal_those_of_a_plain_pass(packing, tmp_path):
    tokenizer = small_tokenizer()
    model = small_model(
        vocab_size=len(tokenizer), pad_token_id=0, balance_coefficient=0.0, max_positions=64, num_rounds=2
    )
    plain = copy.deepcopy(model).train()
    rows = [tokenizer(text + tokenizer.eos_token, return_tensors="pt").input_ids for text in TEXTS]
    targets = sum(row.numel() - 1 for row in rows)
    loss = sum(plain(input_ids=row, labels=row).loss * (row.numel() - 1) for row in rows) / targets
    loss.backward()
    kept = Gradients()
    options = SFTConfig(
        str(tmp_path),
        packing=packing,
        max_length=64,
        per_device_train_batch_size=1 if packing else len(TEXTS),
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model,
        options,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
        callbacks=[kept],
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(kept.found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
