"""The plain block, used as bottom, anchor, and top block and as layer of a plain transformer."""

from __future__ import annotations

from torch import Tensor, nn

from mom.model.attention import AttentionContext
from mom.model.components import activated, build_norm, normalized_qk
from mom.model.configuration import MoMConfig


class ResidualProjection(nn.Linear):
    """A projection into the residual stream; its initial weights are scaled down with the depth of the graph."""


class PlainAttention(nn.Module):
    """A norm and causal self-attention with the components of ``config.block``."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        bias, width = config.components.bias, config.d_model
        self.norm = build_norm(config)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(width // config.num_heads, eps=config.layer_norm_epsilon) if config.qk_norm else None
            for _ in range(2)
        )
        self.out = ResidualProjection(width, width, bias=bias)

    def forward(self, x: Tensor, context: AttentionContext, layer_index: int) -> Tensor:
        """Return the update of the residual stream, [B, T, D] → [B, T, D]."""
        qkv = self.qkv(self.norm(x))  # (B, T, 3D)
        if self.q_norm is not None and self.k_norm is not None:
            assert self.q_norm.eps is not None
            qkv = normalized_qk(qkv, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        return self.out(context.attend(qkv, layer_index))


class PlainFFN(nn.Module):
    """A norm and a feed-forward with the components of ``config.block``; ``fc`` has SwiGLU's gate and value."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        bias, hidden = config.components.bias, config.ffn_width
        self.config = config
        self.norm = build_norm(config)
        self.fc = nn.Linear(config.d_model, 2 * hidden if config.components.gated else hidden, bias=bias)
        self.proj = ResidualProjection(hidden, config.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of the residual stream, [B, T, D] → [B, T, D]."""
        return self.proj(activated(self.config, self.fc(self.norm(x))))


class Block(nn.Module):
    """A layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.attention = PlainAttention(config)
        self.ffn = PlainFFN(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: AttentionContext, layer_index: int) -> Tensor:
        """Run the block, [B, T, D] → [B, T, D]."""
        x = x + self.dropout(self.attention(x, context, layer_index))  # (B, T, D)
        return x + self.dropout(self.ffn(x))
