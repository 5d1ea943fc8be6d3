"""One transformer layer as plain tensors: what every conversion reads from one model and writes into another."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mom.model.blocks import Block, PlainAttention, PlainFFN
from mom.model.pools import AttentionPool, FFNPool


@dataclass(frozen=True)
class AttentionWeights:
    """Attention of one layer or module; projections are stored [in, out] as in GPT-2's files."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


@dataclass(frozen=True)
class FFNWeights:
    """Feed-forward of one layer or module; projections are stored [in, out]."""

    norm_weight: Tensor
    norm_bias: Tensor
    fc_weight: Tensor
    fc_bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor


class Layer(NamedTuple):
    """Both halves of a transformer layer."""

    attention: AttentionWeights
    ffn: FFNWeights


def read_block(block: Block) -> Layer:
    """The weights of a plain block (views, not copies)."""
    return Layer(
        AttentionWeights(**{f.name: _of_plain(block.attention, f.name) for f in fields(AttentionWeights)}),
        FFNWeights(**{f.name: _of_plain(block.ffn, f.name) for f in fields(FFNWeights)}),
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
def write_module(pool: AttentionPool | FFNPool, index: int, weights: AttentionWeights | FFNWeights) -> None:
    """Copy one half of a layer into module ``index`` of a pool, in place."""
    for field in fields(weights):
        _copy(getattr(pool, field.name)[index], getattr(weights, field.name), field.name)


@torch.no_grad()
def copy_affine(ours: nn.LayerNorm, weight: Tensor, bias: Tensor) -> None:
    """Copy a LayerNorm's scale and shift, in place."""
    _copy(ours.weight, weight, "weight")
    _copy(ours.bias, bias, "bias")


def _of_plain(half: PlainAttention | PlainFFN, name: str) -> Tensor:
    """A plain block's tensor by a module's name for it, matrices turned to [in, out]."""
    part, kind = name.rsplit("_", 1)
    tensor = getattr(getattr(half, part), kind)
    return tensor.t() if tensor.dim() == 2 else tensor


def _copy(ours: Tensor, theirs: Tensor, name: str) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: shape {tuple(theirs.shape)}; {tuple(ours.shape)}")
    ours.copy_(theirs)
