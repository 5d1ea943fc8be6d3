"""What a configuration costs, from the configuration alone: parameters, depth, FLOPs, cache (DESIGN §3).

FLOPs count 2 per multiply-add of matrix products and attention, as PyTorch's own counter does; element-wise work
is left out. A training step costs three forwards (the backward pass has two products for each of the forward's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mom.model import MoMConfig, MoMForCausalLM
from mom.model.pools import AttentionPool, FFNPool
from mom.model.schedules import PoolLayout


@dataclass(frozen=True)
class Usage:
    """Modules that a token runs in one step of each pool, on average over tokens and rounds.

    Attributes:
        attention: attention modules per step, 0 to K.
        ffn: feed-forward modules per step, 0 to K.
    """

    attention: float
    ffn: float

    @classmethod
    def nominal(cls, config: MoMConfig) -> Usage:
        """Every place holds a module, as many as a round may choose: what a token may cost at most."""
        if config.num_stages == 0:
            return cls(0.0, 0.0)
        return cls(*(layout.most_modules(config.router) for layout in _layouts(config)))

    @classmethod
    def of(cls, config: MoMConfig, routing: Sequence[Any]) -> Usage:
        """What was used, from the records that the model returns for its rounds; all positions count.

        Args:
            config: the model's configuration.
            routing: the records of all rounds; empty for a plain model.
        """
        if not routing:
            return cls(0.0, 0.0)
        pools = (("attention", config.num_attention_modules), ("ffn", config.num_ffn_modules))
        used = [
            torch.stack([(getattr(one, pool).selected < size).sum(-1).float().mean() for one in routing])
            for pool, size in pools
        ]
        return cls(*torch.stack([one.mean() for one in used]).tolist())


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward, per token.

    Attributes:
        blocks: projections of the plain blocks.
        modules: projections of the assembled modules.
        attention: scores and weighted sums over the mean causal length.
        routers: router projections.
        head: the output head.
    """

    blocks: float
    modules: float
    attention: float
    routers: float
    head: float

    @property
    def total(self) -> float:
        """All parts of a forward, per token."""
        return self.blocks + self.modules + self.attention + self.routers + self.head

    @property
    def training(self) -> float:
        """A training step, per token: three forwards."""
        return 3 * self.total


def num_parameters(config: MoMConfig) -> int:
    """All parameters, the tied head counted once; from the built model on the meta device."""
    with torch.device("meta"):
        model = MoMForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def num_active_parameters(config: MoMConfig, usage: Usage | None = None) -> float:
    """Parameters that a token passes, each counted once: all but the modules that no round can need.

    A round uses ``usage`` modules of a pool, so a stage uses at most ``rounds x usage`` different ones.
    """
    usage = usage or Usage.nominal(config)
    if config.num_stages == 0:
        return num_parameters(config)
    with torch.device("meta"):
        attention_module, ffn_module = (
            sum(parameter.numel() for parameter in pool.parameters()) / pool.num_modules
            for pool in (AttentionPool(config), FFNPool(config))
        )
    idle_attention = config.num_attention_modules - min(
        config.num_attention_modules, config.num_rounds * usage.attention
    )
    idle_ffn = config.num_ffn_modules - min(config.num_ffn_modules, config.num_rounds * usage.ffn)
    idle = config.num_stages * (idle_attention * attention_module + idle_ffn * ffn_module)
    return num_parameters(config) - idle


def flops_per_token(config: MoMConfig, sequence_length: float, usage: Usage | None = None) -> Flops:
    """Forward FLOPs per token at a sequence length.

    Args:
        config: the model's configuration.
        sequence_length: T; causal attention sees (T + 1) / 2 keys on average. A mean over sequences may be given.
        usage: modules per step; ``None`` counts K (no SKIP). Every round attends over all tokens, whoever skips.
    """
    usage = usage or Usage.nominal(config)
    width, hidden = config.d_model, config.ffn_width
    ffn_matrices = 3 if config.components.gated else 2
    attention_projections, ffn_projections = 2 * 4 * width * width, 2 * ffn_matrices * width * hidden
    rounds = config.num_stages * config.num_rounds
    blocks = config.graph_depth - rounds
    return Flops(
        blocks=blocks * (attention_projections + ffn_projections),
        modules=rounds * (usage.attention * attention_projections + usage.ffn * ffn_projections),
        attention=config.graph_depth * 2 * 2 * width * (sequence_length + 1) / 2,
        routers=rounds * sum(_router_flops(config, layout) for layout in _layouts(config)),
        head=2 * width * config.vocab_size,
    )


def kv_cache_bytes_per_token(config: MoMConfig, bytes_per_number: int = 2) -> int:
    """Bytes that decoding keeps per token: a key and a value for every executed attention."""
    return 2 * config.graph_depth * config.d_model * bytes_per_number


def _layouts(config: MoMConfig) -> tuple[PoolLayout, PoolLayout]:
    return PoolLayout.attention(config), PoolLayout.ffn(config)


def _router_flops(config: MoMConfig, layout: PoolLayout) -> float:
    """One router's products for one token in one round."""
    width, state, slots = config.d_model, config.router_width, layout.num_slots
    return {
        "gru": 2 * (3 * state * width + 3 * state * state + state * slots),
        "mlp": 2 * (state * width + state * slots),
        "linear": 2 * width * slots,
        "sequential": 0,
        "random": 0,
    }[config.router]
