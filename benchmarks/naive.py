"""A naive PyTorch implementation for comparison, which keeps all gathered rows and logits for the backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mom.model import MoMForCausalLM
from mom.model.assembly import Stage
from mom.model.attention import AttentionContext


def naive_loss(model: MoMForCausalLM, ids: Tensor) -> Tensor:
    """Return the model's loss on ``ids``, (B, T); supports only ``skipped_kv: zero`` and unweighted q, k, v."""
    config, body = model.config, model.model
    positions = torch.arange(ids.shape[1])[None]
    embedded = body.embedding.token(ids)  # (B, T, D)
    x = body.embedding(embedded, positions)
    context = AttentionContext(config.num_heads, None, None, False, None)
    for block in body.bottom:
        x = block(x, context, 0)
    for stage in body.stages:
        x = _stage(stage, x, ids, embedded, context)
    for block in body.top:
        x = block(x, context, 0)
    logits = model.lm_head(body.norm(x)).float()  # (B, T, V)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _stage(stage: Stage, x: Tensor, ids: Tensor, embedded: Tensor, context: AttentionContext) -> Tensor:
    attention, ffn = stage.attention, stage.ffn
    states: list[Tensor | None] = [None, None]
    for index in range(stage.num_rounds):
        routing, states[0] = attention.router(x, states[0], index, ids, embedded=embedded)
        selected, weights = routing.selected.flatten(0, 1), routing.weights.flatten(0, 1)
        qkv = _assembled(attention.pool, "qkv", x.flatten(0, 1), selected)
        mixed = context.attend(qkv.view(*x.shape[:2], -1), 0).flatten(0, 1)
        x = x + _routed(attention.pool, "out", mixed, selected, weights).view_as(x)
        routing, states[1] = ffn.router(x, states[1], index, ids, embedded=embedded)
        selected, weights = routing.selected.flatten(0, 1), routing.weights.flatten(0, 1)
        x = x + _ffn(ffn.pool, x.flatten(0, 1), selected, weights).view_as(x)
    return x if stage.anchor is None else stage.anchor(x, context, 0)


def _linear(pool, name: str, module: int, rows: Tensor) -> Tensor:
    return rows @ getattr(pool, f"{name}_weight")[module] + getattr(pool, f"{name}_bias")[module]


def _normed(pool, module: int, rows: Tensor) -> Tensor:
    scale, shift = pool.norm_weight[module], pool.norm_bias[module]
    return F.layer_norm(rows, rows.shape[-1:], scale, shift, pool.config.layer_norm_epsilon)


def _assembled(pool, name: str, x: Tensor, selected: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], getattr(pool, f"{name}_bias").shape[-1])
    for module in range(pool.num_modules):
        token, _ = torch.where(selected == module)
        y = _linear(pool, name, module, _normed(pool, module, x[token]))
        out = out.index_add(0, token, y.to(out.dtype))
    return out


def _routed(pool, name: str, x: Tensor, selected: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], getattr(pool, f"{name}_bias").shape[-1])
    for module in range(pool.num_modules):
        token, assignment = torch.where(selected == module)
        y = _linear(pool, name, module, x[token]) * weights[token, assignment, None]
        out = out.index_add(0, token, y.to(out.dtype))
    return out


def _ffn(pool, x: Tensor, selected: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for module in range(pool.num_modules):
        token, assignment = torch.where(selected == module)
        hidden = F.gelu(_linear(pool, "fc", module, _normed(pool, module, x[token])), approximate="tanh")
        y = _linear(pool, "proj", module, hidden) * weights[token, assignment, None]
        out = out.index_add(0, token, y.to(out.dtype))
    return out
