"""Every task that measures a Mixture-of-Modules also accepts a Hugging Face GPT-2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mom.interop import load_classifier
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer
from tests.helpers.glue_files import write_glue
from tests.helpers.xsum_files import write_xsum
from tests.tasks.test_evaluate import evaluated, tokens_of
from tests.tasks.test_evaluate_tuned import assert_same_measures
from tests.tasks.test_evaluate_tuned import evaluated as evaluated_tuned
from tests.tasks.test_finetune import tuned as tuned_on_glue
from tests.tasks.test_finetune_xsum import tuned as tuned_on_xsum
from tests.tasks.test_generate import generated


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> tuple[Path, GPT2LMHeadModel]:
    """Save a model with transformers; return the folder and the model."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


def test_perplexity_is_that_of_transformers(tmp_path, gpt2):
    folder, model = gpt2
    summary = evaluated(tmp_path, folder)
    ids = tokens_of(tmp_path, "validation")
    windows = ids[: len(ids) // 32 * 32].view(-1, 32)
    with torch.no_grad():
        expected = float(model(input_ids=windows, labels=windows).loss)
    assert summary["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert summary["depth/graph"] == summary["depth/effective"] == 2


def test_glue(tmp_path, gpt2):
    folder, model = gpt2
    write_glue(tmp_path / "glue", "rte")
    start = load_classifier(folder, ("entailment", "not_entailment"))
    assert torch.equal(start.model.embedding.token.weight, model.transformer.wte.weight)
    trained, run = tuned_on_glue(tmp_path, folder, {"epochs": 1.0})
    found, _ = evaluated_tuned(tmp_path, run / "checkpoints" / "best.ckpt", name="rte", sequence_length=32)
    assert trained["steps"] == 3
    assert_same_measures(found, trained)


def test_xsum(tmp_path, gpt2):
    write_xsum(tmp_path / "xsum", train=4, validation=2)
    trained, run = tuned_on_xsum(tmp_path, gpt2[0], {"epochs": 1.0})
    assert trained["steps"] == 2
    options = {"sequence_length": 48, "separator": "|", "max_summary_tokens": 6}
    found, _ = evaluated_tuned(tmp_path, run / "checkpoints" / "best.ckpt", kind="xsum", **options)
    assert_same_measures(found, trained)


def test_generation_is_that_of_transformers(tmp_path, gpt2):
    folder, model = gpt2
    (line,) = generated(tmp_path, folder, prompt="router pool", do_sample=False)
    tokenizer = small_tokenizer()
    ids = torch.tensor([tokenizer("router pool")["input_ids"]])
    whole = model.generate(
        ids,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
        attention_mask=torch.ones_like(ids),
    )
    added = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert line["completion"] == added
