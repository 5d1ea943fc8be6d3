"""Attention with keys and values that the pool shares, compared with a loop in all modes of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mom import MoMForCausalLM
from mom.cost.estimate import num_active_parameters, num_parameters
from tests.helpers.models import decoded_in_parts, small_config, small_model, tokens

POOLS = {"attention": {"kind": "shared_kv_attention", "num_modules": 3}, "ffn": {}}


def shared_model(**changes: Any) -> MoMForCausalLM:
    return small_model(
        **({"pools": POOLS, "num_rounds": 1, "num_bottom_blocks": 0, "anchors": False} | changes)
    )


def attended(model: MoMForCausalLM, x: torch.Tensor, routing: Any) -> torch.Tensor:
    """Return the update of one sequence by the first round's attention, head by head and token by token, (T, D)."""
    config, pool = model.config, model.model.stages[0].attention.pool
    heads, width = config.num_heads, config.d_model // config.num_heads
    norm = (lambda v: F.rms_norm(v, v.shape[-1:], eps=1e-5)) if config.block == "llama" else None
    norm = norm or (lambda v: F.layer_norm(v, v.shape[-1:], eps=1e-5))
    key, value = F.linear(norm(x), pool.kv.weight, pool.kv.bias).chunk(2, -1)  # (T, D) each
    if config.qk_norm:
        key = F.rms_norm(key.view(len(x), heads, width), (width,), eps=1e-5).flatten(1)
    out = torch.zeros_like(x)
    for t in range(len(x)):
        chosen = [
            (m, w)
            for m, w in zip(routing.selected[0, t].tolist(), routing.weights[0, t], strict=True)
            if m < pool.num_modules
        ]
        query = torch.zeros(config.d_model)
        for m, w in chosen:
            shift = 0 if pool.norm_bias is None else pool.norm_bias[m]
            q = (norm(x[t]) * pool.norm_weight[m] + shift) @ pool.q_weight[m]
            q = q if pool.q_bias is None else q + pool.q_bias[m]
            if config.qk_norm:
                q = (F.rms_norm(q.view(heads, width), (width,), eps=1e-5) * pool.q_norm_weight[m]).flatten()
            query = query + (w * q if config.weight_qkv else q)
        parts = []
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            odds = (key[: t + 1, columns] @ query[columns] / width**0.5).softmax(0)
            parts.append(odds @ value[: t + 1, columns])
        for m, w in chosen:
            output = torch.cat(parts) @ pool.out_weight[m]
            out[t] = out[t] + w * (output if pool.out_bias is None else output + pool.out_bias[m])
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 1, "skipped_kv": "mask", "seed": 1},
        {"weight_qkv": True, "qk_norm": True, "seed": 1},
        {"top_k": "all", "qk_norm": True},
    ],
    ids=str,
)
def test_it_attends_to_the_shared_keys_and_values_of_all_tokens(changes: dict[str, Any]) -> None:
    model = shared_model(**changes)
    output = model(input_ids=tokens(1, 9), output_routing=True, output_hidden_states=True)
    routing = output.routing[0].attention
    before = output.hidden_states[0][0]
    middle = before + attended(model, before, routing)
    ffn = model.model.stages[0].ffn
    update = ffn.pool.kind.run(ffn.pool, middle[None], output.routing[0].ffn, ffn.pool(10**6), context=None)
    torch.testing.assert_close(output.hidden_states[1][0], middle + update[0], atol=1e-5, rtol=1e-4)
    if changes.get("top_k") == 1:
        assert (routing.selected == 3).any(), "a token skips"


def test_it_equals_attention_whose_modules_have_the_same_keys_and_values() -> None:
    changes = {"top_k": 1, "skip": False, "num_rounds": 3}
    shared = shared_model(**changes)
    routed = shared_model(**changes | {"pools": ["attention", "ffn"]})
    routed.load_state_dict(shared.state_dict(), strict=False)
    pool, own = shared.model.stages[0].attention.pool, routed.model.stages[0].attention.pool
    with torch.no_grad():
        for scale, start in (
            (pool.norm_weight, 1.0),
            (own.norm_weight, 1.0),
            (pool.norm_bias, 0.0),
            (own.norm_bias, 0.0),
        ):
            scale.fill_(start)
        kv_weight, kv_bias = pool.kv.weight.T.expand(3, -1, -1), pool.kv.bias.expand(3, -1)
        own.qkv_weight.copy_(torch.cat([pool.q_weight, kv_weight], -1))
        own.qkv_bias.copy_(torch.cat([pool.q_bias, kv_bias], -1))
    ids = tokens(2, 9)
    torch.testing.assert_close(
        shared(input_ids=ids).logits, routed(input_ids=ids).logits, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("changes", [{}, {"block": "llama"}, {"skipped_kv": "mask", "top_k": 1}], ids=str)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_pass(changes: dict[str, Any]) -> None:
    model, ids = shared_model(num_rounds=3, **changes), tokens(2, 12)
    torch.testing.assert_close(decoded_in_parts(model, ids), model(ids).logits, atol=2e-5, rtol=1e-4)


def test_the_cost_counts_the_shared_projection_once() -> None:
    config = small_config(pools=POOLS, num_rounds=1, top_k=1)
    model = shared_model(num_rounds=1, top_k=1, num_bottom_blocks=1, anchors=True)
    pool = model.model.stages[0].attention.pool
    module = sum(p[0].numel() for p in pool.parameters(recurse=False))
    assert config.pools()[0].kind.num_parameters(config) == module
    ffn = sum(p[0].numel() for p in model.model.stages[0].ffn.pool.parameters())
    assert num_parameters(config) - num_active_parameters(config) == 2 * module + 2 * ffn
    d = config.d_model
    assert config.pools()[0].kind.shared_flops(config) == 2 * d * 2 * d
    assert config.pools()[0].kind.flops(config) == 2 * (d * d + d * d)


def test_it_trains_all_its_weights() -> None:
    model = shared_model(num_rounds=3, top_k=1).train()
    ids = tokens(4, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.model.stages[0].attention.pool.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
