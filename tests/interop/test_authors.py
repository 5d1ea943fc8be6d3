"""The authors' checkpoints: results of the authors' code, and every option of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mom.errors import UsageError
from mom.interop import load_authors_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = ("gru_top2", "gru_top1_two_chunks", "all_paths", "mlp_router_top2", "fewer_attention_modules")


def fold(scores: torch.Tensor, num_modules: int) -> torch.Tensor:
    """Sum the authors' slots past the pool's modules, which all mean SKIP."""
    return torch.cat([scores[..., :num_modules], scores[..., num_modules:].sum(-1, keepdim=True)], dim=-1)


@pytest.mark.parametrize("folder", FOLDERS)
def test_reproduces_choices_scores_logits_and_loss(folder):
    model = load_authors_checkpoint(GOLDEN / folder)
    expected = load_file(GOLDEN / folder / "expected.safetensors")
    output = model(input_ids=expected["input_ids"], labels=expected["labels"], output_routing=True)
    torch.testing.assert_close(output.logits, expected["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.lm_loss, expected["loss"].squeeze(), atol=1e-5, rtol=0)
    assert len(output.routing) == sum(name.endswith("attn_scores") for name in expected)
    top_k = json.loads((GOLDEN / folder / "config.json").read_text())["routing_top_k"]
    for index, decided in enumerate(output.routing):
        for name, step in (("attn", decided.attention), ("ffn", decided.ffn)):
            theirs = expected[f"round.{index}.{name}_scores"]
            num_modules = step.scores.shape[-1] - 1
            torch.testing.assert_close(step.scores, fold(theirs, num_modules), atol=1e-4, rtol=0)
            chosen = theirs.topk(top_k, dim=-1).indices.clamp(max=num_modules)
            torch.testing.assert_close(step.selected[..., :top_k], chosen, atol=0, rtol=0)


@pytest.mark.parametrize("folder", FOLDERS)
def test_reproduces_every_gradient(folder, tmp_path):
    expected = load_file(GOLDEN / folder / "expected.safetensors")
    # Modules that no token chose have no gradient in their code and a gradient of zeros in ours.
    weights = load_file(GOLDEN / folder / "model.safetensors")
    gradients = {
        name: expected.get(f"grad.{name}", torch.zeros_like(tensor)) for name, tensor in weights.items()
    }
    # Loading the expected gradients as a checkpoint translates their names to ours.
    shutil.copy(GOLDEN / folder / "config.json", tmp_path)
    save_file(gradients, tmp_path / "model.safetensors")
    wanted = {
        name: parameter.detach() for name, parameter in load_authors_checkpoint(tmp_path).named_parameters()
    }

    model = load_authors_checkpoint(GOLDEN / folder)
    model(input_ids=expected["input_ids"], labels=expected["labels"]).lm_loss.backward()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-3 * largest, rtol=0, msg=name)
        # Also against the tensor's own scale, so that a small tensor cannot hide behind a large one.
        own = float(wanted[name].abs().max())
        torch.testing.assert_close(
            parameter.grad, wanted[name], atol=2e-3 * own + 1e-6 * largest, rtol=0, msg=name
        )


def altered(tmp_path: Path, folder: str = "gru_top2", drop: str | None = None, **changes) -> Path:
    """Copy a golden checkpoint with other options."""
    config = json.loads((GOLDEN / folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(GOLDEN / folder / "model.safetensors")
    if drop is not None:
        weights = {name: tensor for name, tensor in weights.items() if drop not in name}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def without_pause(tmp_path: Path) -> Path:
    """Write gru_top2 like a model without SKIP, whose routers have one output less."""
    path = altered(tmp_path, enable_pause=False)
    weights = load_file(path / "model.safetensors")
    for name in [name for name in weights if ".router.router." in name]:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, path / "model.safetensors")
    return path


def test_without_pause_skip_is_never_chosen(tmp_path):
    model = load_authors_checkpoint(without_pause(tmp_path))
    ids = torch.arange(20)[None]
    for decided in model(input_ids=ids, output_routing=True).routing:
        for step in decided:
            assert int(step.selected.max()) < 3
            torch.testing.assert_close(step.scores[..., -1], torch.zeros(1, 20))


def test_raw_scores_are_the_weights_and_are_not_renormalized(tmp_path):
    model = load_authors_checkpoint(altered(tmp_path, router_type="gru"))
    step = model(input_ids=torch.arange(20)[None], output_routing=True).routing[0].ffn
    torch.testing.assert_close(step.weights, step.scores.gather(-1, step.selected))
    assert not torch.allclose(step.scores.sum(-1), torch.ones(1, 20))


def test_straight_through_weights_are_signs(tmp_path):
    model = load_authors_checkpoint(altered(tmp_path, use_ste=True))
    step = model(input_ids=torch.arange(20)[None], output_routing=True).routing[0].attention
    assert step.weights.unique().tolist() == [1.0]


def test_other_options_change_the_function_they_name(tmp_path):
    ids = torch.arange(20)[None]
    plain = load_authors_checkpoint(altered(tmp_path))(input_ids=ids).logits
    for changes in ({"weighted_qkv": True}, {"router_softmax_temperature": 1.0}, {"depth_per_chunk": 3}):
        other = load_authors_checkpoint(altered(tmp_path, **changes))(input_ids=ids).logits
        assert not torch.allclose(plain, other, atol=1e-3), changes
    assert load_authors_checkpoint(altered(tmp_path, depth_per_chunk=None)).config.num_rounds == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"router_type": "dev_gru_softmax"},
            "checkpoint.router_type must be one of gru_softmax, gru, naive_softmax, naive, got dev_gru",
        ),
        (
            {"activation_function": "relu"},
            "checkpoint.activation_function must be gelu_new or gelu_pytorch_tanh, got relu",
        ),
        (
            {"bind_ffn_attn": True, "num_attn": 2},
            "checkpoint.bind_ffn_attn must be false if num_attn (2) and num_ffn (3) differ, got true",
        ),
        ({"num_attn": 1}, "checkpoint.num_attn must be at least 2, got 1"),
        (
            {"num_attn": 5, "router_type": "naive_softmax"},
            "checkpoint.num_attn must be at most num_ffn (3) with router_type naive_softmax, got 5",
        ),
        ({"num_bottom_layers": 3}, "requires the tensor transformer.h."),
        ({"num_top_layers": 0}, "tensors are not part of config.json's model"),
        ({"drop": "ln_f"}, "requires the tensor transformer.ln_f.weight"),
    ],
)
def test_an_error_names_what_is_not_supported(tmp_path, changes, message):
    with pytest.raises(UsageError) as error:
        load_authors_checkpoint(altered(tmp_path, **changes))
    assert message in str(error.value)


def test_an_error_names_damaged_and_missing_files(tmp_path):
    with pytest.raises(UsageError, match=r"the folder has no config\.json"):
        load_authors_checkpoint(tmp_path)
    path = altered(tmp_path)
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UsageError, match=r"cannot load checkpoint=.*model.safetensors: Error while deserializing header"
    ):
        load_authors_checkpoint(path)
    (path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"its config\.json is not valid"):
        load_authors_checkpoint(path)
