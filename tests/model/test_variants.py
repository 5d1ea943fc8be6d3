"""Other architectures as special cases of MoM, each compared with a plain implementation: values and gradients.

The plain implementations use `torch.nn.functional` and a loop over layers and tokens. They read the weights of the
model as tensors, and nothing else of it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mom.model import MoMForCausalLM
from mom.model.routing import choose, leave
from tests.helpers.models import small_model, tokens

LAYERS = 4
STACK = {
    "num_bottom_blocks": 0,
    "num_top_blocks": 0,
    "anchors": False,
    "num_attention_modules": LAYERS,
    "num_ffn_modules": LAYERS,
    "num_rounds": LAYERS,
    "router": "linear",
    "top_k": 1,
}


def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, shift, 1e-5)


def attention(pool, i: int, x: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """GPT-2's attention with weights i, [T, D] → [T, D]; ``seen`` [T]: keys that other tokens can attend to."""
    length, width = x.shape
    qkv = norm(x, pool.norm_weight[i], pool.norm_bias[i]) @ pool.qkv_weight[i] + pool.qkv_bias[i]
    q, k, v = qkv.view(length, 3, heads, width // heads).permute(1, 2, 0, 3)
    mask = torch.ones(length, length).tril().bool()
    if seen is not None:
        mask = mask & (seen | torch.eye(length).bool())
    p = (q @ k.mT / (width // heads) ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1)
    return (p @ v).transpose(0, 1).reshape(length, width) @ pool.out_weight[i] + pool.out_bias[i]


def ffn(pool, i: int, x: Tensor) -> Tensor:
    """GPT-2's feed-forward with weights i, [..., D] → [..., D]."""
    hidden = norm(x, pool.norm_weight[i], pool.norm_bias[i]) @ pool.fc_weight[i] + pool.fc_bias[i]
    return F.gelu(hidden, approximate="tanh") @ pool.proj_weight[i] + pool.proj_bias[i]


def embed(model: MoMForCausalLM, ids: Tensor) -> Tensor:
    embedding = model.model.embedding
    return embedding.token.weight[ids] + embedding.position.weight[: len(ids)]


def head(model: MoMForCausalLM, x: Tensor) -> Tensor:
    last = model.model.norm
    return norm(x, last.weight, last.bias) @ model.model.embedding.token.weight.T


def keeps(model: MoMForCausalLM, part, x: Tensor, layer: int) -> Tensor:
    """Probability that a router runs the layer instead of skipping it: a softmax over its two outputs, [T]."""
    out = part.router.output
    pair = torch.stack([x @ out.weight[layer] + out.bias[layer], x @ out.weight[-1] + out.bias[-1]], dim=-1)
    return (pair / model.config.temperature).softmax(-1)[:, 0]


def plain_stack(model: MoMForCausalLM, ids: Tensor, order: list[int]) -> Tensor:
    """GPT-2 with the layers in ``order``."""
    stage, x = model.model.stages[0], embed(model, ids)
    for i in order:
        x = x + attention(stage.attention.pool, i, x, model.config.num_heads)
        x = x + ffn(stage.ffn.pool, i, x)
    return head(model, x)


def layer_skip(model: MoMForCausalLM, ids: Tensor) -> Tensor:
    """Layers in order; before each half, a gate per token runs it (scaled by its probability) or skips it."""
    stage, x = model.model.stages[0], embed(model, ids)
    for i in range(LAYERS):
        p = keeps(model, stage.attention, x, i)
        kept = p > 0.5
        y = attention(stage.attention.pool, i, x, model.config.num_heads, seen=kept)
        x = torch.where(kept[:, None], x + p[:, None] * y, x)
        p = keeps(model, stage.ffn, x, i)
        x = torch.where((p > 0.5)[:, None], x + p[:, None] * ffn(stage.ffn.pool, i, x), x)
    return head(model, x)


def early_exit(model: MoMForCausalLM, ids: Tensor) -> Tensor:
    """Layers in order; before each layer a token may exit, and then skips that layer and all later ones."""
    stage, x = model.model.stages[0], embed(model, ids)
    inside = torch.ones(len(ids)).bool()
    for i in range(LAYERS):
        p = keeps(model, stage.attention, x, i)
        inside = inside & (p > 0.5)
        y = attention(stage.attention.pool, i, x, model.config.num_heads, seen=inside)
        x = torch.where(inside[:, None], x + p[:, None] * y, x)
        x = torch.where(inside[:, None], x + ffn(stage.ffn.pool, i, x), x)
    return head(model, x)


def mixture_of_depths(model: MoMForCausalLM, ids: Tensor) -> Tensor:
    """Alternating routed and plain blocks; a token runs or skips an entire routed block.

    In training with a capacity, the best tokens run it (Raposo et al. 2024); else those with a probability above 0.5.
    """
    x, heads = embed(model, ids), model.config.num_heads
    for stage in model.model.stages:
        p = keeps(model, stage.attention, x, 0)
        best = (
            p.topk(round(model.config.capacity * len(ids))).values if model.training else torch.tensor([0.5])
        )
        kept = p >= best[-1]
        y = x + p[:, None] * attention(stage.attention.pool, 0, x, heads, seen=kept)
        x = torch.where(kept[:, None], y + ffn(stage.ffn.pool, 0, y), x)
        block = torch.nn.Module()
        for half in (stage.anchor.attention, stage.anchor.ffn):
            for name, layer in half.named_children():
                weight = layer.weight.T if layer.weight.dim() == 2 else layer.weight
                setattr(block, f"{name}_weight", weight[None])
                setattr(block, f"{name}_bias", layer.bias[None])
            x = x + (attention(block, 0, x, heads) if half is stage.anchor.attention else ffn(block, 0, x))
    return head(model, x)


def mixture_of_experts(model: MoMForCausalLM, ids: Tensor) -> Tensor:
    """Each layer has an attention and its own experts; a token runs the top K, with renormalized softmax weights."""
    stage, x, config = model.model.stages[0], embed(model, ids), model.config
    experts, k = config.num_ffn_modules // LAYERS, config.ffn_top_k
    for i in range(LAYERS):
        x = x + attention(stage.attention.pool, i, x, config.num_heads)
        own, out = slice(i * experts, (i + 1) * experts), stage.ffn.router.output
        p = ((x @ out.weight[own].T + out.bias[own]) / config.temperature).softmax(-1)  # (T, experts)
        best, chosen = p.topk(k, dim=-1)
        best = best / best.sum(-1, keepdim=True) if k > 1 else best
        rows = []
        for t in range(len(ids)):
            parts = [
                w * ffn(stage.ffn.pool, i * experts + int(e), x[t])
                for w, e in zip(best[t], chosen[t], strict=True)
            ]
            rows.append(x[t] + sum(parts))
        x = torch.stack(rows)
    return head(model, x)


SCALED = {"normalize_weights": False}  # a module's output is multiplied by its probability
EXPERTS = {"schedule": "layerwise", "ffn_schedule": "grouped", "skip": False}
MASKED = {"schedule": "layerwise", "skipped_kv": "mask"}
BLOCKS = {"num_stages": 3, "anchors": True, "num_attention_modules": 1, "num_ffn_modules": 1, "num_rounds": 1}
CASES = {
    "plain": (
        {"schedule": "layerwise", "skip": False},
        lambda model, ids: plain_stack(model, ids, [*range(LAYERS)]),
    ),
    "universal": (
        {"num_attention_modules": 1, "num_ffn_modules": 1, "skip": False},
        lambda model, ids: plain_stack(model, ids, [0] * LAYERS),
    ),
    "universal of two": (
        {"num_attention_modules": 2, "num_ffn_modules": 2, "schedule": "layerwise", "skip": False},
        lambda model, ids: plain_stack(model, ids, [0, 1] * (LAYERS // 2)),
    ),
    "one expert": (
        EXPERTS | {"ffn_top_k": 1},
        lambda model, ids: plain_stack(model, ids, [*range(LAYERS)]),
    ),
    "layer skip": (MASKED | SCALED, layer_skip),
    "early exit": (MASKED | SCALED | {"absorbing_skip": True, "ffn_skip": False}, early_exit),
    "mixture of depths": (
        BLOCKS | SCALED | {"absorbing_skip": True, "ffn_skip": False, "skipped_kv": "mask"},
        mixture_of_depths,
    ),
    "mixture of depths, experts choose": (
        BLOCKS | {"absorbing_skip": True, "ffn_skip": False, "skipped_kv": "mask", "capacity": 0.4},
        mixture_of_depths,
    ),
    "experts, best one": (
        EXPERTS | SCALED | {"num_ffn_modules": 3 * LAYERS, "ffn_top_k": 1},
        mixture_of_experts,
    ),
    "experts, best two": (EXPERTS | {"num_ffn_modules": 3 * LAYERS, "ffn_top_k": 2}, mixture_of_experts),
}


def variant(case: str) -> MoMForCausalLM:
    model = small_model(**STACK | CASES[case][0])
    with torch.no_grad():
        for stage in model.model.stages:
            stage.attention.router.output.bias[:-1] += 0.3  # so that most tokens stay and some exit
    return model.train(model.config.capacity is not None)


@pytest.mark.parametrize("case", CASES)
def test_equals_a_plain_implementation_in_value_and_every_gradient(case):
    model, ids = variant(case), tokens(2, 9)
    output = model(input_ids=ids, labels=ids, output_routing=True)
    output.lm_loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    if model.config.pools()[0].may_skip():
        left = torch.stack(
            [record.attention.selected == record.attention.scores.shape[-1] - 1 for record in output.routing]
        )
        assert 0.05 < left.float().mean() < 0.95  # the test is not vacuous

    model.zero_grad()
    logits = torch.stack([CASES[case][1](model, row) for row in ids])
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(output.logits, logits, atol=2e-5, rtol=1e-4)
    for name, parameter in model.named_parameters():
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            ours[name], theirs, atol=1e-5 + 1e-4 * float(theirs.abs().max()), rtol=0, msg=name
        )


@pytest.mark.parametrize("case", ["early exit", "mixture of depths", "experts, best two"])
def test_padding_and_cached_decoding_change_nothing(case):
    model, ids = variant(case), tokens(2, 9)
    full = model(input_ids=ids).logits
    cache, steps = None, []
    for at in range(9):
        out = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=2e-5, rtol=1e-4)
    for left in (0, 3):
        padded, mask = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 12, dtype=torch.long)
        padded[:, left : left + 9], mask[:, left : left + 9] = ids, 1
        logits = model(input_ids=padded, attention_mask=mask).logits[:, left : left + 9]
        torch.testing.assert_close(logits, full, atol=2e-5, rtol=1e-4)


def test_exited_tokens_stay_out():
    model, ids = variant("early exit"), tokens(4, 9)
    routing = model(input_ids=ids, output_routing=True).routing
    skip = model.config.num_attention_modules
    away, shares = torch.zeros(4, 9).bool(), []
    for decisions in routing:
        for step in decisions:
            assert (step.selected[..., 0] == skip)[away].all()
            assert (step.scores[away] == torch.eye(skip + 1)[skip]).all()
            away = away | (step.selected == skip).all(-1)
        shares.append(float(away.float().mean()))
    assert 0 < shares[0] < 1 and shares == sorted(shares)


@pytest.mark.parametrize("skip_slots", [1, 2])
def test_routers_get_no_gradient_from_exited_tokens(skip_slots):
    outputs = torch.randn(1, 4, 3 + skip_slots, generator=torch.Generator().manual_seed(0)).requires_grad_()
    exited = torch.tensor([[True, False, True, False]])
    decided = leave(choose(outputs, num_modules=3, top_k=2, normalize=True), exited)
    assert (
        decided.selected[exited].tolist() == [[3, 3]] * 2 and decided.weights[exited].tolist() == [[1, 0]] * 2
    )
    loss = decided.scores.square().sum() + decided.weights.square().sum() + decided.logits.logsumexp(-1).sum()
    loss.backward()
    assert (outputs.grad[exited] == 0).all() and (outputs.grad[~exited] != 0).any(-1).all()
