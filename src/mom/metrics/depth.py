"""The depth of a token: effective, weighted, and its distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mom.metrics.routing import POOLS, PoolRecord, RoundRecord
from mom.metrics.sums import Floats, Sums, Totals, as_floats

DEPTH_QUANTILES = (0.1, 0.5, 0.9)


def depth_sums(
    routing: Sequence[RoundRecord], mask: Tensor, *, num_attention_modules: int, num_ffn_modules: int
) -> Sums:
    """Sums behind the depth metrics of one forward pass.

    Args:
        routing: the rounds' records; empty for a plain transformer.
        mask: [B, T] boolean, true where there is a token and not padding.
        num_attention_modules: N of the attention pools.
        num_ffn_modules: N of the FFN pools.

    Returns:
        ``histogram`` [2R+1], tokens by the number of steps in which they took a module (exact, so the
        deviation and every quantile of the depth follow from it); and over all tokens ``attention_steps``,
        ``ffn_steps`` (steps in which a module was taken), ``weight`` (weight of the modules taken),
        ``attention_modules``, ``ffn_modules`` (places held by a module) and ``lengths`` (real tokens in the
        token's own sequence).
    """
    modules = {"attention": num_attention_modules, "ffn": num_ffn_modules}
    real = mask.bool()
    steps = torch.zeros(real.shape, dtype=torch.int64, device=real.device)  # [B, T]
    sums: Sums = {}
    weight = torch.zeros((), device=real.device)
    for pool in POOLS:
        taken_by_token = torch.zeros_like(steps)
        places = torch.zeros((), dtype=torch.int64, device=real.device)
        for record in routing:
            choice: PoolRecord = getattr(record, pool)
            is_module = (choice.selected < modules[pool]) & real.unsqueeze(-1)  # [B, T, K]
            taken_by_token += is_module.any(dim=-1)
            weight = weight + (choice.weights.detach().float() * is_module).sum()
            places = places + is_module.sum()
        sums[f"{pool}_steps"] = taken_by_token.sum()
        sums[f"{pool}_modules"] = places
        steps += taken_by_token
    histogram = torch.zeros(2 * len(routing) + 1, dtype=torch.int64, device=real.device)
    histogram.scatter_add_(0, steps.flatten(), real.flatten().long())
    lengths = real.sum(dim=-1).square().sum()  # (B, T) → ()
    return {"histogram": histogram, "weight": weight, "lengths": lengths, **sums}


def depth_metrics(totals: Totals, *, fixed_depth: int, graph_depth: int) -> dict[str, float]:
    """Depth as DESIGN §3 defines it, from the totals of :func:`depth_sums`.

    Args:
        totals: the collected sums.
        fixed_depth: blocks that every token passes: bottom, top and anchors.
        graph_depth: blocks of the computation graph, every round counted whole.

    Returns:
        ``effective``: mean over tokens of ``fixed_depth`` + ½ for every attention step and ½ for every FFN
        step in which the token took at least one module; ``effective_std``, its standard deviation over
        tokens; ``effective_q10 effective_q50 effective_q90``, the smallest depth that at least this share of
        the tokens does not exceed; ``effective_attention`` and ``effective_ffn``, the same sum over one kind
        of step alone, counted whole (a plain block counts 1 in each, so ``effective`` is the mean of the
        two); ``weighted``: ``effective`` with the weight of the modules taken in place of ½ · 1;
        ``modules_per_token``: places held by a module, a plain block counting 2; ``graph``: the graph depth.
        Empty when no token was counted.
    """
    histogram = totals["histogram"].double()
    tokens = float(histogram.sum())
    if tokens == 0:
        return {}
    depths = fixed_depth + 0.5 * torch.arange(len(histogram), dtype=torch.float64)
    share = histogram / tokens
    mean = float((share * depths).sum())
    variance = float((share * (depths - mean) ** 2).sum())
    reached = share.cumsum(0)
    quantiles = {
        f"effective_q{round(100 * q)}": float(depths[int((reached < q - 1e-12).sum())])
        for q in DEPTH_QUANTILES
    }
    return {
        "effective": mean,
        "effective_std": variance**0.5,
        **quantiles,
        "effective_attention": fixed_depth + float(totals["attention_steps"]) / tokens,
        "effective_ffn": fixed_depth + float(totals["ffn_steps"]) / tokens,
        "weighted": fixed_depth + 0.5 * float(totals["weight"]) / tokens,
        "modules_per_token": 2 * fixed_depth
        + float(totals["attention_modules"] + totals["ffn_modules"]) / tokens,
        "graph": float(graph_depth),
    }


DEPTHS = ("effective", "weighted")


WEIGHTED_STEP = 0.25
"""Blocks in a bin of the distribution of the weighted depth."""


LOSS_EDGES = tuple(range(0, 17))
"""Nats; the last bin holds everything above it too."""


def token_depths(
    routing: Sequence[RoundRecord], *, num_attention_modules: int, num_ffn_modules: int, fixed_depth: int
) -> dict[str, Tensor]:
    """Depth of every token in blocks, [B, T] float32, by name (:data:`DEPTHS`).

    By the definitions of :func:`mom.metrics.depth.depth_metrics`, token by token.
    """
    sizes = {"attention": num_attention_modules, "ffn": num_ffn_modules}
    first = routing[0].attention.selected
    depths = {
        name: torch.full(first.shape[:2], float(fixed_depth), device=first.device) for name in DEPTHS
    }  # (B, T)
    for pool in POOLS:
        for record in routing:
            choice: PoolRecord = getattr(record, pool)
            is_module = choice.selected < sizes[pool]  # (B, T, K)
            depths["effective"] += 0.5 * is_module.any(dim=-1)
            depths["weighted"] += 0.5 * (choice.weights.detach().float() * is_module).sum(dim=-1)
    return depths


def depth_bins(depths: dict[str, Tensor], mask: Tensor, *, fixed_depth: int, graph_depth: int) -> Sums:
    """How many real tokens are how deep: ``<name>`` [M] with the depths of :func:`bin_depths`."""
    sums: Sums = {}
    for name, depth in depths.items():
        step = 0.5 if name == "effective" else WEIGHTED_STEP
        number = round((graph_depth - fixed_depth) / step) + 1
        place = ((depth - fixed_depth) / step).round().long().clamp(0, number - 1)
        counts = torch.zeros(number, dtype=torch.int64, device=depth.device)
        sums[name] = counts.scatter_add_(0, place.flatten(), mask.long().flatten())
    return sums


def bin_depths(name: str, *, fixed_depth: int, graph_depth: int) -> Tensor:
    """The depths that the bins of :func:`depth_bins` stand for, [M], in blocks."""
    step = 0.5 if name == "effective" else WEIGHTED_STEP
    return fixed_depth + step * torch.arange(round((graph_depth - fixed_depth) / step) + 1)


def moments_by(place: Tensor, depths: dict[str, Tensor], mask: Tensor, *, number: int) -> Sums:
    """Sums of the depths of the real tokens that fall in the same place.

    Args:
        place: [B, T], int64 from 0 to ``number`` - 1: a token's id, or the bin of its loss.
        depths: [B, T] by name.
        mask: [B, T] boolean.
        number: how many places there are.

    Returns:
        ``tokens`` [number]; ``<name>/total`` and ``<name>/squares`` [number], sums of the depth and its square.
    """
    index, real = place.flatten(), mask.flatten()
    dtype = torch.float32 if place.device.type == "mps" else torch.float64  # Apple's GPUs know no float64
    zeros = torch.zeros(number, dtype=dtype, device=place.device)
    sums: Sums = {"tokens": zeros.clone().scatter_add_(0, index, real.to(dtype))}
    for name, depth in depths.items():
        own = depth.flatten().to(dtype) * real
        sums[f"{name}/total"] = zeros.clone().scatter_add_(0, index, own)
        sums[f"{name}/squares"] = zeros.clone().scatter_add_(0, index, own * own)
    return sums


@dataclass(frozen=True)
class Binned:
    """Sums over the tokens of each bin, from which follow mean and deviation; bins may be added up.

    Attributes:
        edges: [B+1], ascending; of what the tokens are sorted by.
        tokens: [B], how many tokens are in the bin.
        total: [B], sum of their depths, in blocks.
        squares: [B], sum of the squares of their depths.
    """

    edges: ArrayLike
    tokens: ArrayLike
    total: ArrayLike
    squares: ArrayLike

    def mean(self) -> Floats:
        """[B] mean depth; NaN in an empty bin."""
        tokens = as_floats(self.tokens)
        return np.divide(as_floats(self.total), tokens, out=np.full_like(tokens, np.nan), where=tokens > 0)

    def std(self) -> Floats:
        """[B] standard deviation of the depth over tokens; NaN in an empty bin."""
        tokens = as_floats(self.tokens)
        square = np.divide(
            as_floats(self.squares), tokens, out=np.full_like(tokens, np.nan), where=tokens > 0
        )
        return np.sqrt(np.maximum(square - self.mean() ** 2, 0.0))


def binned_by_frequency(
    tokens: ArrayLike, total: ArrayLike, squares: ArrayLike, per_decade: int = 2
) -> Binned:
    """Sort the tokens of a text by how often their type occurs in it.

    Args:
        tokens: [V], occurrences of each token type.
        total: [V], sum of their depths.
        squares: [V], sum of the squares of their depths.
        per_decade: bins for each factor of ten.

    Returns:
        Bins of occurrences per million tokens, from the rarest type to the most frequent.
    """
    tokens, total, squares = (as_floats(one) for one in (tokens, total, squares))
    seen = tokens > 0
    if not seen.any():
        return Binned(np.array([1.0, 10.0]), np.zeros(1), np.zeros(1), np.zeros(1))
    frequency = 1e6 * tokens[seen] / tokens.sum()
    exponent = np.log10(frequency) * per_decade
    first, last = int(np.floor(exponent.min())), int(np.floor(exponent.max())) + 1
    edges = 10.0 ** (np.arange(first, last + 1) / per_decade)
    place = np.clip(np.floor(exponent).astype(int) - first, 0, last - first - 1)
    sums = (np.bincount(place, weights=one[seen], minlength=last - first) for one in (tokens, total, squares))
    return Binned(edges, *sums)
