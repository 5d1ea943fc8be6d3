"""The components that ``block`` selects: norm, positions, feed-forward activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mom.model.options import ModelOptions


def build_norm(config: ModelOptions) -> nn.LayerNorm | nn.RMSNorm:
    """Build the norm of a plain block, or the final norm."""
    kind = nn.RMSNorm if config.components.rms_norm else nn.LayerNorm
    return kind(config.d_model, eps=config.layer_norm_epsilon)


def normalized(config: ModelOptions, x: Tensor) -> Tensor:
    """Normalize over the last dimension, without scale and shift."""
    normalize = F.rms_norm if config.components.rms_norm else F.layer_norm
    return normalize(x, x.shape[-1:], eps=config.layer_norm_epsilon)


def activated(config: ModelOptions, hidden: Tensor) -> Tensor:
    """Apply the feed-forward's activation: [..., F] → [..., F], or SwiGLU's gate and value [..., 2F] → [..., F]."""
    if not config.components.gated:
        return F.gelu(hidden, approximate="tanh")
    gate, value = hidden.chunk(2, dim=-1)
    return F.silu(gate) * value


def normalized_heads(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """Apply RMSNorm within each head, as Qwen3 does to queries and keys (Henry et al. 2020, arXiv 2010.04245).

    Args:
        x: [..., D].
        scale: scale of the norm, [..., D / heads].
        epsilon: epsilon of the norm.
    """
    heads = x.unflatten(-1, (-1, scale.shape[-1]))  # (..., heads, D / heads)
    return (F.rms_norm(heads, heads.shape[-1:], eps=epsilon) * scale.unsqueeze(-2)).flatten(-2)


def normalized_qk(qkv: Tensor, query_scale: Tensor, key_scale: Tensor, epsilon: float) -> Tensor:
    """Normalize the queries and keys of [..., 3D] by :func:`normalized_heads`; values are unchanged."""
    query, key, value = qkv.chunk(3, dim=-1)
    query = normalized_heads(query, query_scale, epsilon)
    return torch.cat([query, normalized_heads(key, key_scale, epsilon), value], dim=-1)


def rotation(config: ModelOptions, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of RoPE's angles, [B or 1, T] → two [B or 1, 1, T, D / heads / 2], float32."""
    half = config.d_model // config.num_heads // 2
    exponent = torch.arange(half, device=position_ids.device, dtype=torch.float32) / half
    angles = position_ids[:, None, :, None].float() * config.rope_theta**-exponent
    return angles.cos(), angles.sin()


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + half) of each head, [B, heads, T, D / heads], by :func:`rotation`, as Llama does."""
    cos, sin = (part.to(x.dtype) for part in angles)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
