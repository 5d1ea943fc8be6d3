"""The depth of tokens: effective, weighted, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mom.metrics.sums import Floats, Sums, Totals, as_floats
from mom.model import RoundRouting, Routing

DEPTH_QUANTILES = (0.1, 0.5, 0.9)

DEPTHS = ("effective", "weighted")
"""The depths that figures show."""

WEIGHTED_STEP = 0.25
"""Blocks in a bin of the distribution of weighted depth."""

LOSS_EDGES = tuple(range(17))
"""Bins of the loss, in nats; the last includes everything above."""


def module_weights(choice: Routing) -> Tensor:
    """Return the weights of a step's choices, 0 for SKIP, [B, T, K], float32, detached."""
    return choice.weights.detach().float() * (choice.selected < choice.num_modules)


def depth_sums(routing: Sequence[RoundRouting], mask: Tensor, pools: Sequence[str]) -> Sums:
    """Return the sums from which :func:`depth_metrics` computes the depth metrics of a forward pass.

    Args:
        routing: the records of all rounds; empty for a plain transformer.
        mask: [B, T] boolean, true for tokens, false for padding.
        pools: names of the P pools.

    Returns:
        ``histogram`` [P * R + 1], tokens by the number of steps in which they took a module, which determines the
        standard deviation and all quantiles of the depth. Summed over all tokens, for each pool, ``<pool>_steps``
        (steps that took a module) and ``<pool>_modules`` (assignments to a module); ``weight`` (weights of the modules
        taken) and ``lengths`` (real tokens in the token's sequence).
    """
    real = mask.bool()
    steps = torch.zeros(real.shape, dtype=torch.int64, device=real.device)  # (B, T)
    sums: Sums = {}
    weight = torch.zeros((), device=real.device)
    for pool in pools:
        pool_steps = torch.zeros_like(steps)  # (B, T)
        modules = torch.zeros((), dtype=torch.int64, device=real.device)
        for record in routing:
            choice: Routing = getattr(record, pool)
            pool_steps += choice.took_module & real
            weight = weight + (module_weights(choice) * real.unsqueeze(-1)).sum()
            modules = modules + ((choice.selected < choice.num_modules) & real.unsqueeze(-1)).sum()
        sums[f"{pool}_steps"] = pool_steps.sum()
        sums[f"{pool}_modules"] = modules
        steps += pool_steps
    histogram = torch.zeros(len(pools) * len(routing) + 1, dtype=torch.int64, device=real.device)
    histogram.scatter_add_(0, steps.flatten(), real.flatten().long())
    lengths = real.sum(dim=-1).square().sum()  # (B, T) → ()
    return {"histogram": histogram, "weight": weight, "lengths": lengths, **sums}


def depth_metrics(
    totals: Totals, pools: Sequence[str], *, fixed_depth: int, graph_depth: int
) -> dict[str, float]:
    """Compute the depth metrics, in blocks, from the totals of :func:`depth_sums`.

    Args:
        totals: the collected sums.
        pools: names of the P pools.
        fixed_depth: blocks that every token passes: bottom, top, and anchors.
        graph_depth: blocks of the computation graph, with every round.

    Returns:
        ``effective``: mean over tokens of ``fixed_depth`` + 1/P for each step in which the token took a module;
        ``effective_std``, its standard deviation over tokens; ``effective_q10``, ``_q50`` and ``_q90``, its quantiles;
        ``effective_<pool>``, the same sum over the steps of one pool, each counting 1 (a plain block counts 1 for every
        pool, so ``effective`` is their mean); ``weighted``: ``effective`` with the weights of the modules taken instead
        of 1; ``modules_per_token``: assignments to a module, where a plain block counts 2; ``graph``: the graph depth.
        Empty if no token was counted.
    """
    histogram = totals["histogram"].double()
    tokens = float(histogram.sum())
    if tokens == 0:
        return {}
    depths = fixed_depth + torch.arange(len(histogram), dtype=torch.float64) / len(pools)
    fraction = histogram / tokens
    mean = float((fraction * depths).sum())
    variance = float((fraction * (depths - mean) ** 2).sum())
    reached = fraction.cumsum(0)
    quantiles = {
        f"effective_q{round(100 * q)}": float(depths[int((reached < q - 1e-12).sum())])
        for q in DEPTH_QUANTILES
    }
    return {
        "effective": mean,
        "effective_std": variance**0.5,
        **quantiles,
        **{f"effective_{pool}": fixed_depth + float(totals[f"{pool}_steps"]) / tokens for pool in pools},
        "weighted": fixed_depth + float(totals["weight"]) / len(pools) / tokens,
        "modules_per_token": 2 * fixed_depth
        + float(sum(totals[f"{pool}_modules"] for pool in pools)) / tokens,
        "graph": float(graph_depth),
    }


def token_depths(routing: Sequence[RoundRouting], *, fixed_depth: int) -> dict[str, Tensor]:
    """Return the depth of every token, [B, T] float32, whose mean over tokens :func:`depth_metrics` computes.

    Args:
        routing: the records of all rounds, at least one.
        fixed_depth: blocks that every token passes.

    Returns:
        ``effective`` and ``weighted``, in blocks, and ``modules``, the modules per token.
    """
    first = routing[0][0].selected
    effective = torch.full(first.shape[:2], float(fixed_depth), device=first.device)  # (B, T)
    weighted, modules = effective.clone(), 2 * effective
    for record in routing:
        for choice in record:
            effective += choice.took_module / len(record)
            weighted += module_weights(choice).sum(dim=-1) / len(record)
            modules += (choice.selected < choice.num_modules).sum(dim=-1)
    return {"effective": effective, "weighted": weighted, "modules": modules}


def depth_bins(
    depths: dict[str, Tensor], mask: Tensor, *, fixed_depth: int, graph_depth: int, num_pools: int = 2
) -> Sums:
    """Count the real tokens of each depth: ``<name>`` [M], for the depths of :func:`bin_depths`.

    Args:
        depths: [B, T] by name, as :func:`token_depths` returns them.
        mask: [B, T] boolean.
        fixed_depth, graph_depth: as for :func:`depth_metrics`.
        num_pools: P; effective depths are multiples of 1/P.
    """
    sums: Sums = {}
    for name, depth in depths.items():
        per_block = _bins_per_block(name, num_pools)
        number = (graph_depth - fixed_depth) * per_block + 1
        index = ((depth - fixed_depth) * per_block).round().long().clamp(0, number - 1)
        counts = torch.zeros(number, dtype=torch.int64, device=depth.device)
        sums[name] = counts.scatter_add_(0, index.flatten(), mask.long().flatten())
    return sums


def bin_depths(name: str, *, fixed_depth: int, graph_depth: int, num_pools: int = 2) -> Tensor:
    """Return the depths of the bins of :func:`depth_bins`, [M], in blocks."""
    per_block = _bins_per_block(name, num_pools)
    return fixed_depth + torch.arange((graph_depth - fixed_depth) * per_block + 1) / per_block


def _bins_per_block(name: str, num_pools: int) -> int:
    return num_pools if name == "effective" else round(1 / WEIGHTED_STEP)


def moments_by(group: Tensor, depths: dict[str, Tensor], mask: Tensor, *, number: int) -> Sums:
    """Sum the depths and their squares over the real tokens of each group.

    Args:
        group: [B, T], int64 from 0 to ``number`` - 1: a token's ID, or the bin of its loss.
        depths: [B, T] by name.
        mask: [B, T] boolean.
        number: number of groups.

    Returns:
        ``tokens`` [number]; ``<name>/total`` and ``<name>/squares`` [number], sums of the depth and its square.
    """
    index, real = group.flatten(), mask.flatten()
    dtype = torch.float32 if group.device.type == "mps" else torch.float64  # Apple GPUs lack float64
    zeros = torch.zeros(number, dtype=dtype, device=group.device)
    sums: Sums = {"tokens": zeros.clone().scatter_add_(0, index, real.to(dtype))}
    for name, depth in depths.items():
        own = depth.flatten().to(dtype) * real
        sums[f"{name}/total"] = zeros.clone().scatter_add_(0, index, own)
        sums[f"{name}/squares"] = zeros.clone().scatter_add_(0, index, own * own)
    return sums


@dataclass(frozen=True)
class Binned:
    """Sums of the depth over the tokens of each bin.

    Attributes:
        edges: [B+1], ascending; edges of the bins.
        tokens: [B], tokens in the bin.
        total: [B], sum of their depths, in blocks.
        squares: [B], sum of the squares of their depths.
    """

    edges: ArrayLike
    tokens: ArrayLike
    total: ArrayLike
    squares: ArrayLike

    def mean(self) -> Floats:
        """Return the mean depth, [B]; NaN in an empty bin."""
        tokens = as_floats(self.tokens)
        return np.divide(as_floats(self.total), tokens, out=np.full_like(tokens, np.nan), where=tokens > 0)

    def std(self) -> Floats:
        """Return the standard deviation of the depth over tokens, [B]; NaN in an empty bin."""
        tokens = as_floats(self.tokens)
        square = np.divide(
            as_floats(self.squares), tokens, out=np.full_like(tokens, np.nan), where=tokens > 0
        )
        return np.sqrt(np.maximum(square - self.mean() ** 2, 0.0))


def binned_by_frequency(
    tokens: ArrayLike, total: ArrayLike, squares: ArrayLike, per_decade: int = 2
) -> Binned:
    """Bin the tokens of a text by the frequency of their type.

    Args:
        tokens: [V], occurrences of each token type.
        total: [V], sum of their depths.
        squares: [V], sum of the squares of their depths.
        per_decade: bins per factor of ten.

    Returns:
        Bins of occurrences per million tokens, from the rarest type to the most frequent.
    """
    tokens, total, squares = (as_floats(array) for array in (tokens, total, squares))
    seen = tokens > 0
    if not seen.any():
        return Binned(np.array([1.0, 10.0]), np.zeros(1), np.zeros(1), np.zeros(1))
    frequency = 1e6 * tokens[seen] / tokens.sum()
    exponent = np.log10(frequency) * per_decade
    first, last = int(np.floor(exponent.min())), int(np.floor(exponent.max())) + 1
    edges = 10.0 ** (np.arange(first, last + 1) / per_decade)
    index = np.clip(np.floor(exponent).astype(int) - first, 0, last - first - 1)
    sums = (
        np.bincount(index, weights=array[seen], minlength=last - first) for array in (tokens, total, squares)
    )
    return Binned(edges, *sums)
