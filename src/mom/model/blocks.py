"""The plain GPT-2 block: bottom, anchor and top blocks, and all of a plain transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mom.model.attention import AttentionContext
from mom.model.configuration import MoMConfig


class ResidualProjection(nn.Linear):
    """A projection into the residual stream; a type of its own, since its initial weights shrink with depth."""


class PlainAttention(nn.Module):
    """Pre-LayerNorm causal self-attention with biases, as in GPT-2."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = ResidualProjection(config.d_model, config.d_model)

    def forward(self, x: Tensor, context: AttentionContext, layer_index: int) -> Tensor:
        """What attention adds to the residual stream, [B, T, D] → [B, T, D]."""
        return self.out(context.attend(self.qkv(self.norm(x)), layer_index))


class PlainFFN(nn.Module):
    """Pre-LayerNorm feed-forward with tanh-GELU and biases, as in GPT-2."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.fc = nn.Linear(config.d_model, config.ffn_width)
        self.proj = ResidualProjection(config.ffn_width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """What the feed-forward adds to the residual stream, [B, T, D] → [B, T, D]."""
        return self.proj(F.gelu(self.fc(self.norm(x)), approximate="tanh"))


class Block(nn.Module):
    """One GPT-2 layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.attention = PlainAttention(config)
        self.ffn = PlainFFN(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: AttentionContext, layer_index: int) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        x = x + self.dropout(self.attention(x, context, layer_index))  # (B, T, D)
        return x + self.dropout(self.ffn(x))
