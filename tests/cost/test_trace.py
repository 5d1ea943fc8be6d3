"""The traced memory of a training step, compared with the measured one, and the growth with depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mom.config import bind
from mom.config.composition import composed
from mom.cost import trace
from mom.cost.memory import measure_memory
from mom.cost.trace import StepTrace, trace_step
from mom.model import MoMConfig, weight_gradients
from mom.training.optimizer import build_optimizer
from tests.helpers.runs import OPTIMIZER

CONF = Path(__file__).resolve().parents[2] / "conf"
SIZES = {
    *("defaults", "initializer_range", "max_positions", "d_model", "num_heads", "num_rounds"),
    *("num_bottom_blocks", "num_top_blocks", "num_attention_modules", "num_ffn_modules"),
}
SHAPE = {"vocab_size": 512, "d_model": 64, "num_heads": 2, "max_positions": 64}
PLAIN = {"num_stages": 0, "num_bottom_blocks": 5, "num_top_blocks": 0}
DEEP = {
    **{"num_stages": 2, "num_bottom_blocks": 4, "num_rounds": 4, "top_k": 2, "router": "gru"},
    **{"num_attention_modules": 3, "num_ffn_modules": 3},
}


@pytest.mark.parametrize("changes", [PLAIN, {"num_rounds": 4}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_traced_peak_is_the_measured_one(changes, checkpointing):
    config = MoMConfig(**SHAPE, **changes)
    traced = trace_step(config, 4, 64, "32-true", checkpointing=checkpointing)
    fields = config.to_dict()
    measured = measure_memory(
        fields, (4, 64), "32-true", "cpu", checkpointing, build_optimizer, OPTIMIZER, "training"
    )
    weights = measured["memory/parameters"] + measured["memory/optimizer"]
    assert weights + traced.peak == pytest.approx(measured["memory/training"], rel=0.1)


@pytest.mark.parametrize("changes", [PLAIN, DEEP])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_deep_model_follows_from_two_shallow_ones(changes, checkpointing, monkeypatch):
    arguments = MoMConfig(**SHAPE, **changes), 2, 32, "bf16-mixed"
    short = trace_step(*arguments, checkpointing=checkpointing)
    monkeypatch.setattr(trace, "_traces", {})
    monkeypatch.setattr(trace, "TRACED_BLOCKS", 100)
    monkeypatch.setattr(trace, "TRACED_ROUNDS", 100)
    full = trace_step(*arguments, checkpointing=checkpointing)

    assert sums(short) == pytest.approx(sums(full), rel=1e-3)
    # Rows that wait for a product of weight gradients do not grow evenly.
    assert short.peak == pytest.approx(full.peak, rel=0.06)


def sums(traced: StepTrace) -> list[float]:
    totals = [
        traced.total(lambda operation: operation.bytes),
        traced.total(lambda operation: operation.flops),
        traced.total(lambda operation: 1),
    ]
    return [traced.gradients, traced.kept, *totals]


def test_operations_have_the_flops_of_the_model():
    config = MoMConfig(**SHAPE, **PLAIN)
    traced = trace_step(config, 2, 64, "32-true")
    matmuls = 12 * 64**2 * 5 + 64 * 512  # weights of blocks and head
    attention = 5 * 2 * 64 * 64 / 2  # scores and sums of causal attention, each d_model × T / 2 for a token
    assert traced.total(lambda operation: operation.flops) == pytest.approx(
        6 * 2 * 64 * (matmuls + attention), rel=0.05
    )


@pytest.mark.parametrize("length", [12, 16, 20, 24, 32])
def test_gradients_at_the_peak_are_some_of_all(length, monkeypatch):
    # Rows then wait for two rounds, or not at all, before a product makes a gradient of them.
    monkeypatch.setattr(weight_gradients, "MIN_WAITING", 0)
    config = MoMConfig(**SHAPE, num_stages=1, num_bottom_blocks=2, num_rounds=8, top_k=2)
    traced = trace_step(config, 2, length, "32-true")

    assert 0 <= traced.gradients_at_peak <= traced.gradients
    assert traced.activations_at_peak > 0


def one_of_each_structure() -> list[str]:
    """Return the last preset of each group that differs only in sizes."""
    found = {}
    for path in sorted((CONF / "model").glob("*.yaml")):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[frozenset((name, str(value)) for name, value in options.items() if name not in SIZES)] = (
            path.stem
        )
    return list(found.values())


@pytest.mark.parametrize(
    ("preset", "batch_size"),
    [*((preset, 4) for preset in one_of_each_structure()), ("mom_medium_shallow", 8)],
)
def test_no_part_of_a_presets_step_is_negative(preset, batch_size):
    config = bind(composed(CONF, ["task=cost", f"model={preset}"])).model_config(512)
    traced = trace_step(config, batch_size, 128, "32-true")

    assert 0 <= traced.gradients_at_peak <= traced.gradients
    assert 0 < traced.activations_at_peak <= traced.peak
    assert traced.gradients_at_peak + traced.activations_at_peak == pytest.approx(traced.peak)
    assert traced.kept > 0
