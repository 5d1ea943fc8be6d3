"""The upcycle task: the mapping of layers, its files, and rejected requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mom.config import bind
from mom.errors import UsageError
from mom.interop import load_model
from mom.runs.directory import RunDirectory
from mom.tasks import upcycle
from tests.helpers.checkpoints import request, small_tokenizer
from tests.helpers.models import tokens

MODEL = {
    "max_positions": 32,
    "d_model": 16,
    "num_heads": 2,
    "num_bottom_blocks": 1,
    "num_top_blocks": 1,
    "num_attention_modules": 2,
    "num_ffn_modules": 2,
    "num_rounds": 4,
}
ROUTER = {"router_dim": 8, "temperature": 0.2}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """Save a Hugging Face GPT-2 with five different layers."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_head=2, n_layer=5, resid_pdrop=0.0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(str(folder))
    return folder


def run(folder: Path, init: Path, task: dict[str, Any] | None = None, **changes: Any):
    """Run the task; return its summary and folder."""
    groups = {"model": MODEL | changes.pop("model", {}), "router": ROUTER | changes.pop("router", {})}
    groups["data"] = {"sequence_length": 32}
    config = bind(request(folder, {"name": "upcycle", **(task or {})}, init=str(init), **groups, **changes))
    directory = RunDirectory(config.run_dir)
    return upcycle.run(config, directory), directory.path / "model"


def loss(model, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).lm_loss)


def test_a_strong_prior_starts_where_the_plain_model_is(tmp_path, gpt2, capsys):
    prior = {"router_prior": "ordered", "router_prior_strength": 12.0}
    summary, folder = run(tmp_path, gpt2, router=prior)
    ids = tokens(4, 32, vocab_size=300)
    plain, mom = load_model(gpt2), load_model(folder)
    assert loss(mom, ids) == pytest.approx(loss(plain, ids), abs=1e-2)
    assert (
        summary["parameters"] == mom.num_parameters() > summary["parameters/plain"] == plain.num_parameters()
    )
    out = capsys.readouterr().out
    for line in ("bottom blocks", "layer 0", "attention modules", "layers 1, 2", "layer 3", "layer 4"):
        assert line in out
    assert f"init={folder}" in out
    assert (folder / "tokenizer.json").is_file()
    assert mom.config.eos_token_id == plain.config.eos_token_id
    assert {path.name for path in folder.parent.iterdir()} == {"model"}


def test_walked_in_order_it_is_the_plain_model(tmp_path, gpt2):
    _, folder = run(
        tmp_path,
        gpt2,
        router={"router": "sequential", "router_prior": "none"},
        model={"num_rounds": 2, "top_k": 1},
    )
    ids = tokens(2, 16, vocab_size=300)
    ours, theirs = (load_model(path).eval()(ids).logits for path in (folder, gpt2))
    # Equal bit for bit, because the same operations run in the same order.
    assert torch.equal(ours, theirs)


def test_any_layers_in_any_order_and_fewer_attention_modules(tmp_path, gpt2):
    task = {"layers": [4, 0, 2, 2, 3], "attention_layers": [3]}
    _, folder = run(tmp_path, gpt2, task, model={"num_attention_modules": 1, "top_k": 1})
    plain, mom = load_model(gpt2).model.bottom, load_model(folder).model
    stage = mom.stages[0]
    assert torch.equal(mom.bottom[0].attention.qkv.bias, plain[4].attention.qkv.bias)
    assert torch.equal(stage.attention.pool.qkv_bias[0], plain[3].attention.qkv.bias)
    assert torch.equal(stage.ffn.pool.fc_bias[0], plain[0].ffn.fc.bias)
    assert torch.equal(stage.ffn.pool.fc_bias[1], plain[2].ffn.fc.bias)
    assert torch.equal(stage.anchor.attention.qkv.bias, plain[2].attention.qkv.bias)
    assert torch.equal(mom.top[0].attention.qkv.bias, plain[3].attention.qkv.bias)


def test_several_stages(tmp_path, gpt2):
    model = {"num_stages": 2, "num_attention_modules": 1, "num_ffn_modules": 1, "top_k": 1, "anchors": False}
    _, folder = run(tmp_path, gpt2, {"layers": [0, 1, 2, 4], "ffn_layers": [3, 1]}, model=model)
    plain, mom = load_model(gpt2).model.bottom, load_model(folder).model
    for index, (attention, ffn) in enumerate([(1, 3), (2, 1)]):
        stage = mom.stages[index]
        assert torch.equal(stage.attention.pool.qkv_bias[0], plain[attention].attention.qkv.bias)
        assert torch.equal(stage.ffn.pool.fc_bias[0], plain[ffn].ffn.fc.bias)


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ({}, {"num_ffn_modules": 3}, r"init must have 6 layers .*, got a plain transformer with 5"),
        ({}, {"d_model": 32}, r"model\.d_model must be 16, as in the model of init, got 32"),
        ({}, {"num_stages": 0}, r"model\.num_stages must be at least 1"),
        ({"layers": [0, 1]}, {}, r"task\.layers must have 5 layers \(1 bottom, then .*\), got 2: \[0, 1\]"),
        ({"layers": [0, 1, 2, 3, 5]}, {}, r"task\.layers must be layers of init, between 0 and 4, got "),
        ({"ffn_layers": [0]}, {}, r"task\.ffn_layers must have 2 layers \(2 per stage\), got 1: \[0\]"),
    ],
)
def test_what_does_not_fit_is_rejected_and_nothing_written(tmp_path, gpt2, task, model, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, gpt2, task, model=model)
    assert not list(tmp_path.rglob("model*"))


def test_an_mom_is_not_upcycled_again(tmp_path, gpt2):
    _, folder = run(tmp_path, gpt2)
    with pytest.raises(UsageError, match="init must be a plain transformer, got a model with 1 stage"):
        run(tmp_path, folder)
