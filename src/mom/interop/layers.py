"""One transformer layer as plain tensors: what every conversion reads from one model and writes into another."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mom.model.blocks import Block, PlainAttention, PlainFFN
from mom.model.pool import Pool


@dataclass(frozen=True)
class AttentionWeights:
    """Attention of one layer or module; projections are stored [in, out] as in GPT-2's files. ``None``: has none."""

    norm_weight: Tensor
    qkv_weight: Tensor
    out_weight: Tensor
    norm_bias: Tensor | None = None
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    q_norm_weight: Tensor | None = None
    k_norm_weight: Tensor | None = None


@dataclass(frozen=True)
class FFNWeights:
    """Feed-forward of one layer or module; projections are stored [in, out], SwiGLU's gate before its value."""

    norm_weight: Tensor
    fc_weight: Tensor
    proj_weight: Tensor
    norm_bias: Tensor | None = None
    fc_bias: Tensor | None = None
    proj_bias: Tensor | None = None


class Layer(NamedTuple):
    """Both halves of a transformer layer."""

    attention: AttentionWeights
    ffn: FFNWeights


def read_block(block: Block) -> Layer:
    """The weights of a plain block (views, not copies)."""
    return Layer(
        AttentionWeights(**{f.name: _of_plain(block.attention, f.name) for f in fields(AttentionWeights)}),  # type: ignore[arg-type]
        FFNWeights(**{f.name: _of_plain(block.ffn, f.name) for f in fields(FFNWeights)}),  # type: ignore[arg-type]
    )


@torch.no_grad()
def write_block(block: Block, layer: Layer) -> None:
    """Copy a layer into a plain block, in place."""
    halves: tuple[tuple[PlainAttention | PlainFFN, AttentionWeights | FFNWeights], ...] = (
        (block.attention, layer.attention),
        (block.ffn, layer.ffn),
    )
    for half, weights in halves:
        for field in fields(weights):
            _copy(_of_plain(half, field.name), getattr(weights, field.name), field.name)


@torch.no_grad()
def write_module(pool: Pool, index: int, weights: AttentionWeights | FFNWeights) -> None:
    """Copy one half of a layer into module ``index`` of a pool, in place."""
    for field in fields(weights):
        ours = getattr(pool, field.name)
        _copy(None if ours is None else ours[index], getattr(weights, field.name), field.name)


@torch.no_grad()
def copy_affine(ours: nn.LayerNorm | nn.RMSNorm, weight: Tensor, bias: Tensor | None = None) -> None:
    """Copy a norm's scale and shift, in place."""
    _copy(ours.weight, weight, "weight")
    _copy(getattr(ours, "bias", None), bias, "bias")


def _of_plain(half: PlainAttention | PlainFFN, name: str) -> Tensor | None:
    """A plain block's tensor by a module's name for it, matrices turned to [in, out]; ``None`` if it has none."""
    part, kind = name.rsplit("_", 1)
    tensor = getattr(getattr(half, part), kind, None)
    return tensor.t() if tensor is not None and tensor.dim() == 2 else tensor


def _copy(ours: Tensor | None, theirs: Tensor | None, name: str) -> None:
    if ours is None or theirs is None:
        if ours is not theirs:
            raise ValueError(
                f"{name}: {'given' if ours is None else 'none'}; {'none' if ours is None else 'one'}"
            )
        return
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: shape {tuple(theirs.shape)}; {tuple(ours.shape)}")
    ours.copy_(theirs)
