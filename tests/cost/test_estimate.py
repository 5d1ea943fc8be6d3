"""Costs from a configuration, compared with the built model and PyTorch's FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mom.cost.estimate import (
    flops_per_token,
    forward_memory,
    kv_cache_bytes_per_token,
    nominal_usage,
    num_active_parameters,
    num_parameters,
    static_costs,
)
from mom.cost.machine import peak_memory
from mom.model import MoMForCausalLM
from tests.helpers.models import small_config, small_model, tokens

CONFIGS = [
    {},
    {"num_stages": 0, "num_bottom_blocks": 3},
    {"num_stages": 2, "anchors": False, "router": "mlp", "num_attention_modules": 2, "d_ffn": 24},
    {"router": "linear", "router_prior": "ordered"},
    {"block": "llama", "d_model": 48, "qk_norm": True, "tie_word_embeddings": False},
    {"top_k": 1, "schedule": "layerwise", "skipped_kv": "mask"},
    {"top_k": 1, "schedule": "layerwise", "ffn_skip": False, "absorbing_skip": True},
    {"num_stages": 3, "num_attention_modules": 1, "num_ffn_modules": 1, "num_rounds": 1, "top_k": 1},
    {
        "schedule": "layerwise",
        "ffn_schedule": "grouped",
        "num_attention_modules": 4,
        "num_ffn_modules": 12,
        "top_k": 1,
        "ffn_top_k": 2,
        "skip": False,
        "router": "linear",
    },
    {"num_attention_modules": 1, "num_ffn_modules": 1, "top_k": 1, "skip": False, "router": "sequential"},
    {"pools": {"attention": {"kind": "shared_kv_attention", "num_modules": 3}, "ffn": {}}},
    {"pools": {"attention": {}, "ffn": {"num_modules": 8, "d_ffn": 12, "top_k": 3}}},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_parameters_are_exactly_the_built_models(changes):
    config = small_config(**changes)
    assert num_parameters(config) == sum(
        parameter.numel() for parameter in MoMForCausalLM(config).parameters()
    )


@pytest.mark.parametrize(
    ("block", "module"), [("gpt2", 2 * 16 + 16 * 64 + 64 + 64 * 16 + 16), ("llama", 16 + 3 * 16 * 48)]
)
def test_active_parameters_exclude_modules_that_no_round_can_need(block, module):
    config = small_config(num_ffn_modules=7, num_rounds=2, top_k=2, block=block)
    assert num_active_parameters(config) == num_parameters(config) - 3 * module
    assert num_active_parameters(small_config()) == num_parameters(small_config())


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_flops_equal_pytorchs_counter_on_the_built_model(changes):
    model = small_model(**changes)
    ids = tokens(2, 16)
    # The math backend computes attention with matmuls that the counter knows.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        routing = model(input_ids=ids, output_routing=True).routing
    usage = None
    if routing:
        ran = [
            [float((pool.selected < pool.num_modules).float().sum(-1).mean()) for pool in pools]
            for pools in zip(*routing, strict=True)
        ]
        usage = dict(zip(("attention", "ffn"), (sum(counts) / len(counts) for counts in ran), strict=True))
    ours = flops_per_token(model.config, 16, usage)
    # It counts T keys per query, as in full attention; ours counts (T + 1) / 2.
    full = ours.attention * 2 * 16 / 17
    assert counter.get_total_flops() == pytest.approx(
        (ours.total - ours.attention + full) * ids.numel(), rel=0.01
    )


@pytest.mark.parametrize("block", ["gpt2", "llama"])
def test_training_flops_equal_pytorchs_counter(block):
    model = small_model(skip=False, block=block)
    ids = tokens(2, 16)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids, labels=ids, output_logits=False).loss.backward()
    ours = flops_per_token(model.config, 16)
    full = ours.total - ours.attention + ours.attention * 2 * 16 / 17
    # The last position predicts nothing, and the very first projection needs no gradient of its input.
    assert counter.get_total_flops() == pytest.approx(3 * full * ids.numel(), rel=0.02)


def test_actual_usage_costs_no_more_than_nominal_and_scales_the_modules_only():
    config = small_config()
    nominal, half = flops_per_token(config, 16), flops_per_token(config, 16, {"attention": 1.0, "ffn": 1.0})
    assert nominal_usage(config) == {"attention": 2.0, "ffn": 2.0}
    assert half.modules == nominal.modules / 2
    assert nominal.total - half.total == half.modules
    assert nominal.training == 3 * nominal.total


def test_cache_bytes_equal_a_real_cache():
    model = small_model()
    cache = model(input_ids=tokens(1, 8), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes_per_token(model.config, bytes_per_number=4) * 8 == real


def test_meta_device_is_enough_for_any_size():
    config = small_config(d_model=4096, num_heads=32, num_attention_modules=64, num_ffn_modules=64)
    assert num_parameters(config) > 10**10
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize(
    ("batch", "changes"),
    [
        (1, {"num_stages": 0, "num_bottom_blocks": 3}),
        (2, {"num_stages": 0, "num_bottom_blocks": 3, "vocab_size": 4000}),
        (2, {}),
        (2, {"top_k": 3, "num_rounds": 8}),
        (1, {"top_k": 3, "num_attention_modules": 13, "num_ffn_modules": 13}),
        (2, {"top_k": 1, "router": "linear"}),
        (1, {"top_k": 3, "vocab_size": 5000}),
    ],
    ids=str,
)
def test_activations_of_a_forward_pass_are_as_measured(batch, changes):
    fields = {"vocab_size": 500, "d_model": 128, "num_heads": 4, "max_positions": 256, "router_dim": 64}
    torch.manual_seed(0)
    model = MoMForCausalLM(small_config(**fields | changes)).eval()
    ids = tokens(batch, 256)
    with torch.no_grad():
        measured = peak_memory(lambda: model(input_ids=ids, use_cache=False), "cpu")
    assert forward_memory(model.config, batch, 256).activations == pytest.approx(measured, rel=0.12)


CAPABILITIES = torch.cpu.get_capabilities()
HAS_BFLOAT16 = any(CAPABILITIES.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@pytest.mark.parametrize(
    ("batch", "changes"),
    [
        pytest.param(
            2,
            {"num_stages": 0, "num_bottom_blocks": 3, "vocab_size": 4000},
            marks=pytest.mark.skipif(
                not HAS_BFLOAT16, reason="without bfloat16 instructions, the CPU also holds logits in float32"
            ),
        ),
        (2, {}),
        (1, {"top_k": 3, "num_attention_modules": 13, "num_ffn_modules": 13}),
    ],
    ids=str,
)
def test_mixed_precision_holds_float32_weights_and_their_copies(batch, changes):
    fields = {"vocab_size": 500, "d_model": 128, "num_heads": 4, "max_positions": 256, "router_dim": 64}
    torch.manual_seed(0)
    model = MoMForCausalLM(small_config(**fields | changes)).eval()
    ids = tokens(batch, 256)

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, use_cache=False)

    held = 4 * num_parameters(model.config) + peak_memory(forward, "cpu")
    costs = static_costs(model.config, 256, "bf16", batch)
    assert costs["forward/parameters"] + costs["forward/activations"] == pytest.approx(held, rel=0.06)
    assert static_costs(model.config, 256, "bf16-mixed", batch) == costs
    assert static_costs(model.config, 256, "bf16-true", batch)["forward/parameters"] == 2 * num_parameters(
        model.config
    )


def test_parts_of_the_memory_of_a_forward_pass():
    config = small_config()
    memory = forward_memory(config, 2, 16, number_bytes=2)
    assert memory.parameters == 2 * num_parameters(config)
    assert memory.cache == 2 * 16 * kv_cache_bytes_per_token(config, 2)
    assert memory.total == memory.parameters + memory.cache + memory.activations
