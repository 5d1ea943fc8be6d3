"""The benchmark at its smallest size: its output, and ratios computed from its measurements."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.bench import main, ratios
from benchmarks.callbacks import overheads
from benchmarks.naive import naive_loss
from mom.cost.estimate import flops_per_token
from tests.helpers.models import small_model, tokens

CONTENDERS = ("mom", "dense", "gpt2", "matmul", "gpt2_default_allocator")


def test_the_naive_variant_is_the_same_model():
    model, ids = small_model(), tokens(2, 16)
    ours = model(input_ids=ids, labels=ids, output_logits=False)
    ours.lm_loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss = naive_loss(model, ids)
    loss.backward()
    assert loss.item() == pytest.approx(ours.lm_loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_ratios_are_of_medians():
    seconds = {"mom": [2.0, 9.0, 2.0], "dense": [1.0, 1.0, 8.0], "gpt2": [4.0] * 3, "matmul": [0.5] * 3}
    found = ratios(seconds, {"mom": 12.0, "dense": 9.0, "gpt2": 6.0, "matmul": 5.0})
    assert found["mom/seconds"] == 2 and found["mom/slowest"] == 9
    assert found["ratio/of_matmul_rate"] == (12 / 2) / (5 / 0.5)
    assert found["ratio/to_gpt2_per_step"] == 2 / 4
    assert found["ratio/to_gpt2_per_flop"] == (2 / 4) / (12 / 6)
    assert found["ratio/to_dense_per_flop"] == (2 / 1) / (12 / 9)


def test_a_run_of_the_smallest_size(tmp_path, capsys):
    out = tmp_path / "bench.json"
    line = ["--size", "smallest", "--repeats", "1", "--out", str(out)]
    results = main([*line, "--precision", "float32", "bfloat16", "--measure", "step", "decode", "memory"])
    assert json.loads(out.read_text()) == results
    assert set(results["results"]) == {"smallest, float32", "smallest, bfloat16"}
    measured = results["results"]["smallest, float32"]
    seconds = {name: [measured[f"{name}/seconds"]] for name in CONTENDERS}
    again = ratios(seconds, {name: measured[f"{name}/flops"] for name in seconds})
    assert again == {name: measured[name] for name in again}
    assert measured["memory/ours_over_naive"] == measured["memory/ours"] / measured["memory/naive"] < 1
    assert measured["cached/tokens_per_second"] == 4 * 16 / measured["cached/seconds"]
    usage = {name: measured[f"usage/{name}"] for name in ("attention", "ffn")}
    config = small_model(vocab_size=64).config
    assert usage["ffn"] <= config.top_k and flops_per_token(config, 16, usage).total > 0
    assert "ratio/of_matmul_rate" in capsys.readouterr().out


def test_growth_measures_every_point(tmp_path):
    line = ["--size", "smallest", "--repeats", "1", "--out", str(tmp_path / "bench.json")]
    measured = main([*line, "--measure", "growth"])["results"]["smallest, float32"]
    points = ["tokens/32", "tokens/64", "tokens/128", "rounds/4", "rounds/8", "rounds/16"]
    points += ["modules/4", "modules/16", "modules/64"]
    assert [name.removesuffix("/seconds") for name in measured if name.endswith("/seconds")] == points


def test_overheads_are_of_neighboring_steps():
    seconds = {"none": [1.0, 2.0, 1.0], "basic": [1.1, 2.2, 1.3], "detailed": [1.5, 2.5, 1.7]}
    found = overheads(seconds)
    assert found["overhead/basic"] == pytest.approx(0.2)
    assert found["overhead/detailed"] == pytest.approx(0.5)
    assert found["overhead/amortized"] == pytest.approx(0.1 * 0.2 + 0.01 * 0.3)


def test_callbacks_are_measured_in_turn(tmp_path):
    line = ["--size", "smallest", "--repeats", "2", "--out", str(tmp_path / "bench.json")]
    measured = main([*line, "--measure", "callbacks"])["results"]["smallest, float32"]
    assert measured["detailed/seconds"] > 0 and measured["none/seconds"] > 0
    assert set(measured) > {"overhead/basic", "overhead/detailed", "overhead/amortized"}


def test_the_profile_names_operators(capsys):
    main(["--size", "smallest", "--profile"])
    assert "_GroupedLinear" in capsys.readouterr().out
