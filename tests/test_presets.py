"""The presets' relations to GPT-2 of their size, and a step of every model file at reduced size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mom.config import bind
from mom.config.composition import composed
from mom.cost.estimate import (
    flops_per_token,
    forward_memory,
    measured_usage,
    nominal_usage,
    num_parameters,
)
from mom.model import MoMConfig, MoMForCausalLM

CONF = Path(__file__).resolve().parents[1] / "conf"
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
LENGTH = 1024
VARIANTS = ("gpt2_tiny", "mom_tiny", "layer_skip", "early_exit", "mixture_of_depths", "moe", "universal")


def preset(name: str, *overrides: str, vocab_size: int = 50257) -> MoMConfig:
    """The configuration as the command line makes it."""
    request = bind(composed(CONF, [f"model={name}", *overrides]))
    return request.model_config(vocab_size)


def compared(name: str, other: str) -> dict[str, float]:
    """Each cost of one preset over that of the other, for one sequence of 1,024 tokens."""
    one, two = preset(name), preset(other)
    ratio = {
        "params": num_parameters(one) / num_parameters(two),
        "depth": one.graph_depth / two.graph_depth,
        "flops": flops_per_token(one, LENGTH).total / flops_per_token(two, LENGTH).total,
    }
    for size in (4, 2):
        ratio[f"memory of {size} bytes"] = (
            forward_memory(one, 1, LENGTH, size).total / forward_memory(two, 1, LENGTH, size).total
        )
    return ratio


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_deep_has_the_parameters_of_gpt2_and_more_depth(size):
    ratio = compared(f"mom_{size}_deep", f"gpt2_{size}")
    assert abs(ratio["params"] - 1) <= 0.02
    assert ratio["depth"] >= 1.38


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_shallow_has_less_depth_and_costs_less(size):
    ratio = compared(f"mom_{size}_shallow", f"gpt2_{size}")
    assert ratio["depth"] <= 0.4
    assert ratio["flops"] <= 0.84
    assert preset(f"mom_{size}_shallow").top_k > preset(f"mom_{size}").top_k
    assert all(value < 1 for value in ratio.values())


def test_large_shallow_needs_the_memory_that_the_paper_says():
    ratio = compared("mom_large_shallow", "gpt2_large")
    assert ratio["memory of 4 bytes"] <= 0.58 and ratio["memory of 2 bytes"] <= 0.58


@pytest.mark.parametrize(
    ("name", "count"), [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080)]
)
def test_gpt2_has_the_parameters_of_gpt2(name, count):
    assert num_parameters(preset(f"gpt2_{name}")) == count


@pytest.mark.parametrize("name", NAMES)
def test_every_model_trains_a_step_at_reduced_size(name):
    narrow = ["model.d_model=16", "model.num_heads=2", "model.max_positions=32", "data.sequence_length=16"]
    model = MoMForCausalLM(preset(name, *narrow, vocab_size=61)).train()
    assert model.config.graph_depth == preset(name).graph_depth
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(2):
        out = model(input_ids=ids, labels=ids, output_routing=True)
        out.loss.backward()
        missing = [key for key, weight in model.named_parameters() if weight.grad is None]
        assert not missing
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss.detach()))
    assert losses[1] < losses[0]
    usage = measured_usage(model.config, out.routing)
    nominal = nominal_usage(model.config)
    assert usage["attention"] <= nominal["attention"] + 1e-6 and usage["ffn"] <= nominal["ffn"] + 1e-6


def documented() -> dict[str, list[str]]:
    """Return the rows of the tables of costs in docs/presets.md, by model."""
    text = (CONF.parent / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line
    ]
    return {
        name.strip("`"): numbers
        for names, *numbers in rows
        for name in names.split(", ")
        if len(numbers) == 4 and name.strip("`") in NAMES
    }


@pytest.mark.parametrize(("name", "numbers"), documented().items())
def test_the_page_has_the_costs(name: str, numbers: list[str]) -> None:
    is_variant = name in VARIANTS
    length, batch, vocab_size, router = (128, 8, 4096, "linear") if is_variant else (1024, 1, 50257, "paper")
    config = preset(name, f"router={router}", f"data.sequence_length={length}", vocab_size=vocab_size)
    flops = length * flops_per_token(config, length).total
    memory = forward_memory(config, batch, length, 4).total / 2**20
    shown = [float(number.split()[0].replace(",", "")) for number in numbers]

    assert shown[0] == num_parameters(config)
    if is_variant:
        assert shown[2] == pytest.approx(flops / 1e9, abs=6e-4)
    else:
        assert shown[1] == config.graph_depth
        assert shown[2] == pytest.approx(flops / 1e12, abs=6e-4)
    assert shown[3] == pytest.approx(memory, rel=5e-3)
