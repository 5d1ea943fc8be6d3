"""What a configuration costs, from the configuration alone: parameters, depth, FLOPs, cache (DESIGN §3).

FLOPs count 2 per multiply-add of matrix products and attention, as PyTorch's own counter does; element-wise work
is left out. A training step costs three forwards (the backward pass has two products for each of the forward's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mom.cost.machine import product_dtype_of
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.pool import worth_folding


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
        return cls(*(layout.most_modules() for layout in config.pools()))

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
    attention_module, ffn_module = (layout.kind.num_parameters(config) for layout in config.pools())
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
        routers=rounds * sum(layout.router.flops(config, layout) for layout in config.pools()),
        head=2 * width * config.vocab_size,
    )


def kv_cache_bytes_per_token(config: MoMConfig, bytes_per_number: int = 2) -> int:
    """Bytes that decoding keeps per token: a key and a value for every executed attention."""
    return 2 * config.graph_depth * config.d_model * bytes_per_number


@dataclass(frozen=True)
class Memory:
    """Bytes of a forward that fills a cache and gives logits of every position, without gradients.

    Attributes:
        parameters: all of them.
        cache: a key and a value for every executed attention and token.
        activations: the largest tensors that live at once beside these.
    """

    parameters: float
    cache: float
    activations: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.parameters + self.cache + self.activations


def forward_memory(config: MoMConfig, batch_size: int, sequence_length: int, number_bytes: int = 4) -> Memory:
    """What a forward needs, from the configuration alone.

    Activations are those of the step that needs most, as this implementation makes them on a CPU, with tokens spread
    evenly over the modules that a round may choose. Every step keeps the embedded tokens. A plain feed-forward needs
    the residual stream before and after the attention and the hidden layer before and after GELU; the head the last
    hidden state and the logits. A round needs as much with K rows for each token, the router's states and the
    records of all rounds, and the copies of a pool's first projection into which LayerNorms are folded. Small tensors
    are left out: up to a tenth of what is measured with GPT-2's blocks, a fifth with ``block: llama``.

    Args:
        config: the model's configuration.
        batch_size: B.
        sequence_length: T.
        number_bytes: of a parameter, of an activation and of a cached number.
    """
    tokens, width, hidden = batch_size * sequence_length, config.d_model, config.ffn_width
    before = 2 * hidden if config.components.gated else hidden
    per_token = max(3 * width + before + hidden, width + config.vocab_size)  # a plain feed-forward, the head
    numbers = float(tokens * per_token)
    if config.num_stages:
        numbers = max(numbers, _numbers_of_a_round(config, tokens, number_bytes))
    return Memory(
        parameters=num_parameters(config) * number_bytes,
        cache=kv_cache_bytes_per_token(config, number_bytes) * tokens,
        activations=numbers * number_bytes,
    )


def _numbers_of_a_round(config: MoMConfig, tokens: int, number_bytes: int) -> float:
    """Numbers that live at the peak of a round of assembly beside parameters and cache; see :func:`forward_memory`."""
    width, rounds = config.d_model, config.num_rounds
    hidden = 2 * config.ffn_width if config.components.gated else config.ffn_width
    kept = 4.0 * width  # embedded tokens, residual stream before and after the attention, normalized
    kept += 2.0 * config.router_kind.state_size(config)
    copies, of_step = 0.0, []
    for layout, columns in zip(config.pools(), (3 * width, hidden), strict=True):
        places = layout.num_selected()
        # Records: scores and logits in 4 bytes, weights in 4, choices in 8.
        record = 4 * (layout.num_modules + 1 + layout.num_slots) + 12 * places
        kept += config.num_stages * rounds * record / number_bytes
        folds = worth_folding(tokens * places * rounds, layout.num_modules * columns)
        copies += layout.num_modules * width * columns if folds else 0.0
        normalized = 0.0 if folds else 2.0 * places * width
        if layout.name == "attention":
            of_step.append((places + 1) * columns + normalized)  # the K rows and their sum
        else:
            open_modules = sum(sum(row[: layout.num_modules]) for row in layout.reachable()) / rounds
            out = (
                width + places * width + places * hidden / open_modules
            )  # the sum, the K rows, one module's GELU
            of_step.append(places * hidden + max(out, normalized))
    return copies + tokens * (kept + max(of_step))


def static_costs(
    config: MoMConfig, length: int, precision: str | int = "32-true", batch_size: int = 1
) -> dict[str, float]:
    """What follows from a configuration alone; operations of a forward over one sequence.

    Args:
        config: the model's configuration.
        length: T, tokens in the sequence.
        precision: ``trainer.precision``, which is what keys and values are kept in.
        batch_size: B, sequences of the forward whose memory is counted.
    """
    flops = flops_per_token(config, length)
    parts = {name: getattr(flops, name) for name in ("blocks", "modules", "attention", "routers", "head")}
    size = product_dtype_of(precision).itemsize
    memory = forward_memory(config, batch_size, length, size)
    return {
        "parameters": num_parameters(config),
        "parameters/active": num_active_parameters(config),
        "vocab_size": config.vocab_size,
        "depth/graph": config.graph_depth,
        "flops/forward": flops.total * length,
        **{f"flops/{name}": value * length for name, value in parts.items()},
        "kv_cache/bytes_per_token": kv_cache_bytes_per_token(config, size),
        "forward/total": memory.total,
        **{f"forward/{part}": getattr(memory, part) for part in ("parameters", "cache", "activations")},
    }
