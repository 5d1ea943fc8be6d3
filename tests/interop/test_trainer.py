"""transformers' ``Trainer`` computes what a plain forward and backward pass does, with our models and with GPT-2."""

from __future__ import annotations

import copy

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from mom.model import MoMForSequenceClassification
from tests.helpers.hugging_face import gradients
from tests.helpers.models import small_model, tokens

LENGTHS = [3, 9, 5, 12, 4, 7, 10, 6]


def gpt2() -> GPT2LMHeadModel:
    """Return the control: a model of transformers itself."""
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.25}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, use_cache=False, **sizes, **dropout))


def adapted() -> peft.PeftModel:
    """Return a model with LoRA on every projection of its blocks, modules, and routers."""
    pools = [
        "attention.pool.qkv_weight",
        "attention.pool.out_weight",
        "ffn.pool.fc_weight",
        "ffn.pool.proj_weight",
    ]
    config = peft.LoraConfig(
        r=2,
        target_modules=["qkv", "out", "fc", "proj", "output"],
        target_parameters=pools,
        task_type="CAUSAL_LM",
    )
    model = small_model(balance_coefficient=0.0, max_positions=64, num_rounds=2, router="linear")
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


MODELS = {
    "control": gpt2,
    "with LoRA": adapted,
    "gpt2": lambda: small_model(balance_coefficient=0.0, max_positions=64, num_rounds=2),
    "llama": lambda: small_model(balance_coefficient=0.0, max_positions=64, num_rounds=2, block="llama"),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


def rows(seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return sequences of several lengths, some of whose labels do not count."""
    found = []
    for length in LENGTHS:
        ids = tokens(1, length, seed=seed + length)[0]
        labels = ids.clone()
        labels[: 1 + length // 4] = -100  # the first has no prediction, but Trainer counts GPT-2's
        found.append({"input_ids": ids, "labels": labels})
    return found


def padded(features) -> dict[str, torch.Tensor]:
    """Pad a batch on the right."""
    ids, labels = ([torch.as_tensor(row[name]) for row in features] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = gradients(model)


def arguments(folder, **options) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": len(LENGTHS),
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(defaults | options))


def first_step(model, folder, collator=padded, **options) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss that Trainer logs for its first step, and the gradients."""
    kept = Gradients()
    trainer = Trainer(
        copy.deepcopy(model),
        arguments(folder, **options),
        data_collator=collator,
        train_dataset=rows(),
        callbacks=[kept],
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"], kept.found


def plain(model) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of all rows in a padded batch, and its gradients."""
    model = copy.deepcopy(model).train()
    loss = model(**padded(rows())).loss
    loss.backward()
    return float(loss.detach()), gradients(model)


ACCUMULATED = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}
WAYS = {
    "one batch": {},
    "accumulation": ACCUMULATED,
    "packed": {"collator": DataCollatorWithFlattening()},
    "packed, for flash attention": {"collator": DataCollatorWithFlattening(return_flash_attn_kwargs=True)},
    "packed, accumulation": {"collator": DataCollatorWithFlattening(), **ACCUMULATED},
    "grouped by length": {"train_sampling_strategy": "group_by_length", **ACCUMULATED},
    "activation checkpointing": {"gradient_checkpointing": True, **ACCUMULATED},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "bfloat16": {"bf16": True, **ACCUMULATED},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_loss_and_gradients_equal_those_of_a_plain_pass(model, way, tmp_path):
    if way == "compiled" and isinstance(model, peft.PeftModel):
        pytest.skip("takes minutes, and the model alone is compiled")
    if way == "compiled" and isinstance(model, GPT2LMHeadModel):
        pytest.skip("tests nothing of ours, and the control goes every other way")
    loss, expected = plain(model)
    found, ours = first_step(model, tmp_path, **WAYS[way])
    tolerance = 0.05 if way == "bfloat16" else 1e-4
    assert found == pytest.approx(loss, rel=tolerance)
    assert {name.removeprefix("_orig_mod.") for name in ours} == set(expected)
    if way == "bfloat16":  # rounding may change a token's choice
        return
    for name, gradient in ours.items():
        wanted = expected[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3, msg=name)


def test_packing_for_flash_attention_requires_positions_and_knows_its_arguments():
    model, ids = small_model(max_positions=64), tokens(1, 8)
    starts = torch.tensor([0, 3, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seq_lens_q, cu_seq_lens_k require position_ids"):
        model(input_ids=ids, cu_seq_lens_q=starts, cu_seq_lens_k=starts)
    with pytest.raises(TypeError, match="unexpected keyword argument 'atention_mask'"):
        model(input_ids=ids, atention_mask=torch.ones_like(ids))


def test_auxiliary_losses_weigh_the_same_with_accumulation(tmp_path):
    """One balance loss of all tokens and a mean of several differ, but not by the number of batches."""
    strong = small_model(balance_coefficient=1.0, z_loss_coefficient=0.5, max_positions=64, num_rounds=2)
    once, _ = first_step(strong, tmp_path / "once")
    accumulated, _ = first_step(strong, tmp_path / "accumulated", **ACCUMULATED)
    assert accumulated == pytest.approx(once, rel=0.1)


@pytest.mark.parametrize(
    "problem", ["regression", "single_label_classification", "multi_label_classification"]
)
def test_a_classifier_with_accumulation_equals_one_batch(problem, tmp_path):
    """GPT-2's does so for classes only: its other losses ignore ``num_items_in_batch``."""
    torch.manual_seed(0)
    body = small_model(balance_coefficient=0.0, num_labels=3, problem_type=problem, num_rounds=2)
    model = MoMForSequenceClassification(body.config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.model.load_state_dict(body.model.state_dict())
    labels = torch.randint(3, (len(LENGTHS),))
    if problem != "single_label_classification":
        labels = torch.randint(2, (len(LENGTHS), 3)).float()

    def collate(features):
        batch = padded(features)
        chosen = torch.stack([labels[LENGTHS.index(len(row["input_ids"]))] for row in features])
        return batch | {"labels": chosen}

    once, expected = first_step(model, tmp_path, collate)
    accumulated, ours = first_step(model, tmp_path, collate, **ACCUMULATED)
    logits = model(**padded(rows()) | {"labels": None}).logits
    loss = {
        "regression": F.mse_loss,
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
    }[problem](logits, labels)
    assert once == pytest.approx(float(loss.detach()), rel=1e-4)
    assert accumulated == pytest.approx(once, rel=1e-4)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_label_smoothing_compares_with_the_next_tokens(model, tmp_path):
    batch = padded(rows())
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:].flatten()
    expected = F.cross_entropy(logits.flatten(0, 1), targets, label_smoothing=0.1)
    for options in ({}, ACCUMULATED):
        loss, _ = first_step(model, tmp_path, label_smoothing_factor=0.1, **options)
        assert loss == pytest.approx(float(expected), rel=1e-4)


def test_compute_metrics_gets_the_logits_alone(model, tmp_path):
    seen = []

    def measure(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    trainer = Trainer(
        model,
        arguments(tmp_path, per_device_eval_batch_size=3, label_names=["labels"]),
        data_collator=padded,
        eval_dataset=rows(),
        compute_metrics=measure,
    )
    assert trainer.evaluate()["eval_rows"] == len(LENGTHS)
    (prediction,) = seen
    assert isinstance(prediction.predictions, np.ndarray)
    assert prediction.predictions.shape == (len(LENGTHS), max(LENGTHS), 61)
    assert trainer.predict(rows()).predictions.shape == prediction.predictions.shape


def test_training_goes_on_from_a_checkpoint(model, tmp_path):
    def train(folder, steps, **options):
        fields = {
            "max_steps": steps,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 2,
            "save_steps": 2,
        }
        settings = arguments(folder, lr_scheduler_type="constant", **(fields | {"save_strategy": "steps"}))
        trainer = Trainer(copy.deepcopy(model), settings, data_collator=padded, train_dataset=rows())
        trainer.train(**options)
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    undisturbed = train(tmp_path / "undisturbed", 4)
    train(tmp_path / "stopped", 2)
    resumed = train(
        tmp_path / "stopped", 4, resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2")
    )
    for name, weight in undisturbed.items():
        torch.testing.assert_close(resumed[name], weight, atol=0, rtol=0, msg=name)


def test_merging_lora_keeps_the_function():
    model, ids = adapted().eval(), tokens(2, 9)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    assert not torch.allclose(expected, base, atol=1e-2)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-3)
