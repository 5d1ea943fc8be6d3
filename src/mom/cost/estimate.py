"""Estimate a model's cost from its configuration: parameters, FLOPs, cache, and memory of a forward pass.

FLOPs count 2 per multiply-add of matmuls and attention, as PyTorch's own counter does; elementwise operations are not
counted. A training step costs three forward passes, since the backward pass has two matmuls for each of the forward's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mom.cost.machine import matmul_dtype, weight_dtype
from mom.cost.trace import contents, trace_step
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.layout import PoolLayout
from mom.model.pools import PoolKind
from mom.model.pools.pool import Pool, worth_folding
from mom.model.registry import pools as pool_kinds
from mom.model.routers.router import Router

Usage = Mapping[str, float]
"""For each pool, the number of modules that a token runs in a step (0 to K), averaged over tokens and rounds."""


def full_usage(config: MoMConfig) -> Usage:
    """Return the maximum usage, in which no assignment goes to SKIP."""
    layouts = config.pools()
    return {layout.name: layout.most_modules() if config.num_stages else 0.0 for layout in layouts}


def nominal_usage(config: MoMConfig) -> Usage:
    """Return the usage in which modules run for as many tokens as they may: for all, or for their ``capacity``."""
    layouts = config.pools()
    if config.num_stages == 0 or all(layout.capacity is None for layout in layouts):
        return full_usage(config)
    usage = dict.fromkeys((layout.name for layout in layouts), 0.0)
    in_stage = 1.0  # share of the tokens
    for h in range(config.num_rounds):
        for layout in layouts:
            usage[layout.name] += in_stage * layout.modules_per_token(h) / config.num_rounds
            if config.absorbing_skip and layout.capacity is not None:
                in_stage *= min(1.0, layout.modules_per_token(h))
    return usage


def measured_usage(config: MoMConfig, routing: Sequence[Any]) -> Usage:
    """Return the usage in a forward pass, from its routing records of all rounds; all positions count."""
    layouts = config.pools()
    if not routing:
        return {layout.name: 0.0 for layout in layouts}
    used = []
    for layout in layouts:
        records = [getattr(decided, layout.name) for decided in routing]
        per_round = [(record.selected < layout.num_modules).sum(-1).float().mean() for record in records]
        used.append(torch.stack(per_round).mean())
    return dict(zip((layout.name for layout in layouts), torch.stack(used).tolist(), strict=True))


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass, per token.

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
        """FLOPs of a forward pass, per token."""
        return self.blocks + self.modules + self.attention + self.routers + self.head

    @property
    def training(self) -> float:
        """FLOPs of a training step, per token: three forward passes."""
        return 3 * self.total


def num_parameters(config: MoMConfig) -> int:
    """Count all parameters by building the model on the meta device, once; a tied head counts once."""
    key = contents(config)
    if key not in _counts:
        with torch.device("meta"):
            model = MoMForCausalLM(config)
        _counts[key] = sum(parameter.numel() for parameter in model.parameters())
    return _counts[key]


_counts: dict[str, int] = {}


def num_active_parameters(config: MoMConfig, usage: Usage | None = None) -> float:
    """Count the parameters that a token can use, each once.

    A round uses ``usage`` modules of a pool, so a stage uses at most ``rounds * usage`` different modules.
    """
    if config.num_stages == 0:
        return num_parameters(config)
    usage = usage or full_usage(config)
    idle = 0.0
    for layout in config.pools():
        num_used = min(layout.num_modules, config.num_rounds * usage[layout.name])
        idle += (layout.num_modules - num_used) * layout.kind.num_parameters(config)
    return num_parameters(config) - config.num_stages * idle


def flops_per_token(config: MoMConfig, sequence_length: float, usage: Usage | None = None) -> Flops:
    """Count the FLOPs of a forward pass per token at a sequence length.

    Args:
        config: the model's configuration.
        sequence_length: T, or a mean over sequences; a token attends to (T + 1) / 2 keys on average.
        usage: modules per step; ``None`` assumes :func:`nominal_usage`. Every round attends over all tokens, including
            those that skip.
    """
    usage = usage or nominal_usage(config)
    layouts, rounds = config.pools(), config.num_stages * config.num_rounds
    return Flops(
        blocks=config.fixed_depth * sum(kind.flops(config) for kind in _plain_kinds()),
        modules=rounds
        * sum(
            usage[layout.name] * layout.kind.flops(config) + layout.kind.shared_flops(config)
            for layout in layouts
        ),
        attention=sum(kind.flops_per_key(config) for kind in _steps(config)) * (sequence_length + 1) / 2,
        routers=rounds * sum(layout.router.flops(config, layout) for layout in layouts),
        head=2 * config.d_model * config.vocab_size,
    )


def kv_cache_bytes_per_token(config: MoMConfig, bytes_per_number: int = 2) -> int:
    """Count the bytes that decoding stores per token: a key and a value for every attention step."""
    return sum(kind.cached_numbers(config) for kind in _steps(config)) * bytes_per_number


def _plain_kinds() -> list[PoolKind]:
    """Return the module kinds of a plain block."""
    return [kind() for kind in pool_kinds.values() if kind.in_plain_blocks]


def _steps(config: MoMConfig) -> list[PoolKind]:
    """Return the kind of every step of a forward pass: in plain blocks, and for each pool in each round."""
    rounds = config.num_stages * config.num_rounds
    return _plain_kinds() * config.fixed_depth + [layout.kind for layout in config.pools()] * rounds


@dataclass(frozen=True)
class Memory:
    """Bytes of a forward pass that fills a cache and returns logits of every position, without gradients.

    Attributes:
        parameters: all parameters, and with mixed precision also the copies that matmuls run on.
        cache: a key and a value for every attention and token.
        activations: other tensors, at their peak.
    """

    parameters: float
    cache: float
    activations: float

    @property
    def total(self) -> float:
        """Bytes in total."""
        return self.parameters + self.cache + self.activations


def forward_memory(
    config: MoMConfig,
    batch_size: int,
    sequence_length: int,
    number_bytes: int = 4,
    weight_bytes: int | None = None,
) -> Memory:
    """Estimate the memory of a forward pass from the configuration.

    Activations are those of the most expensive step as this implementation computes it on a CPU, with tokens spread
    evenly over the modules that a round may choose. Every step keeps the embedded tokens. A plain feed-forward needs
    the residual stream before and after the attention, and the hidden layer before and after GELU; the head needs the
    last hidden state and the logits. A round needs the same with K rows per token, plus the routers' states, the
    records of all rounds, and copies of the first projections that norms are folded into. Small tensors are not
    counted: up to a tenth of the measured memory with GPT-2's blocks, a fifth with ``block: llama``.

    ``number_bytes`` is the size of an activation and a cached number, and ``weight_bytes`` that of a parameter, by
    default the same. If they differ, as with mixed precision, autocast keeps copies of the weights of matmuls.
    """
    tokens, width, hidden = batch_size * sequence_length, config.d_model, config.ffn_width
    before = 2 * hidden if config.components.gated else hidden
    per_token = max(3 * width + before + hidden, width + config.vocab_size)  # a plain feed-forward, the head
    numbers = float(tokens * per_token)
    if config.num_stages:
        numbers = max(numbers, _numbers_of_a_round(config, tokens, number_bytes))
    parameters = num_parameters(config) * (weight_bytes or number_bytes)
    if weight_bytes not in (None, number_bytes):
        parameters += _num_cast_parameters(config) * number_bytes
    return Memory(
        parameters=parameters,
        cache=kv_cache_bytes_per_token(config, number_bytes) * tokens,
        activations=numbers * number_bytes,
    )


def _numbers_of_a_round(config: MoMConfig, tokens: int, number_bytes: int) -> float:
    """Count the activations at the peak of a round; see :func:`forward_memory`."""
    width, rounds, layouts = config.d_model, config.num_rounds, config.pools()
    kept = 4.0 * width  # embedded tokens, residual stream before and after the attention, normalized
    # Routers compute in float32, so their states take 4 bytes a number.
    kept += sum(layout.router.state_size(config, layout) for layout in layouts) * 4 / number_bytes
    copies, peaks = 0.0, []
    for layout in layouts:
        top_k, columns = layout.num_selected(), _columns(config, layout)
        # Records: scores and logits in 4 bytes, weights in 4, choices in 8.
        record = 4 * (layout.num_modules + 1 + layout.num_slots) + 12 * top_k
        kept += config.num_stages * rounds * record / number_bytes
        folds = layout.kind.folds and worth_folding(tokens * top_k * rounds, layout.num_modules * columns)
        copies += layout.num_modules * width * columns if folds else 0.0
        normalized = 0.0 if folds else 2.0 * top_k * width
        if layout.kind.attends:
            # The K rows and their sum, and what all modules share, alone and beside that sum.
            shared = sum(columns for _, columns in layout.kind.shared_projections(config).values())
            peaks.append((top_k + 1) * columns + normalized + 2 * shared)
        else:
            open_modules = sum(sum(row[: layout.num_modules]) for row in layout.reachable()) / rounds
            # The sum, the K rows, and the activation of one module.
            out = width + top_k * width + top_k * columns / open_modules
            peaks.append(top_k * columns + max(out, normalized))
    return copies + tokens * (kept + max(peaks))


def _num_cast_parameters(config: MoMConfig) -> int:
    """Count the parameters that autocast copies: those of matmuls, but for the routers, which compute in float32."""
    with torch.device("meta"):
        model = MoMForCausalLM(config)
    routers = {part for router in model.modules() if isinstance(router, Router) for part in router.modules()}
    hosts = [part for part in model.modules() if isinstance(part, nn.Linear | Pool) and part not in routers]
    return sum(parameter.numel() for host in hosts for parameter in host.parameters(recurse=False))


def _columns(config: MoMConfig, layout: PoolLayout) -> int:
    """Return the width of a pool's first projection."""
    (_, columns), *_ = layout.kind.projections(config).values()
    return columns


def static_costs(
    config: MoMConfig,
    length: int,
    precision: str | int = "32-true",
    batch_size: int = 1,
    checkpointing: bool = False,
) -> dict[str, float]:
    """Return every cost that follows from a configuration; FLOPs are those of a forward pass over one sequence.

    Args:
        config: the model's configuration.
        length: T, tokens in the sequence.
        precision: ``trainer.precision``, which sets the dtypes of parameters, activations, keys and values.
        batch_size: B, sequences of the forward pass and the training step whose memory is estimated.
        checkpointing: ``trainer.activation_checkpointing``.
    """
    flops = flops_per_token(config, length)
    parts = {name: getattr(flops, name) for name in ("blocks", "modules", "attention", "routers", "head")}
    size = matmul_dtype(precision).itemsize
    memory = forward_memory(config, batch_size, length, size, weight_dtype(precision).itemsize)
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
        **_training_memory(config, batch_size, length, precision, checkpointing),
    }


def _training_memory(
    config: MoMConfig, batch_size: int, length: int, precision: str | int, checkpointing: bool
) -> dict[str, float]:
    """Return the bytes of a training step with AdamW at its peak, and their parts."""
    step = trace_step(config, batch_size, length, precision, checkpointing=checkpointing)
    parameters = num_parameters(config) * weight_dtype(precision).itemsize
    parts = {
        "parameters": parameters,
        "optimizer": 2 * parameters,
        "gradients": step.gradients_at_peak,
        "activations": step.activations_at_peak,
    }
    return {"training/total": sum(parts.values())} | {
        f"training/{name}": part for name, part in parts.items()
    }
