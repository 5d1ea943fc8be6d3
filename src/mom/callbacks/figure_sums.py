"""Sums behind the figures of :mod:`mom.plots.routing`, from the records of one forward pass.

As in :mod:`mom.metrics.routing`: tensors on the model's device, which add up over passes and ranks. B batch,
T tokens, R rounds over all stages, N modules in a pool, V token types; SKIP is the last of the N+1 slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mom.metrics.routing import POOLS, PoolRecord, RoundRecord, Sums

DEPTHS = ("effective", "weighted")
WEIGHTED_STEP = 0.25
"""Blocks in a bin of the distribution of the weighted depth."""
LOSS_EDGES = tuple(range(0, 17))
"""Nats; the last bin holds everything above it too."""


def pool_sums(choices: Sequence[PoolRecord], mask: Tensor, *, num_modules: int) -> Sums:
    """Which slots the rounds use, and where tokens go from one to the next.

    Args:
        choices: one kind of pool's records of all rounds, stages in order.
        mask: [B, T] boolean, true where there is a token and not padding.
        num_modules: N.

    Returns:
        ``use`` [R, N+1], places held by each slot; ``flow`` [R-1, N+1, N+1], tokens by their first choice in
        round r and in round r+1.
    """
    real, slots = mask.bool(), num_modules + 1
    selected = torch.stack([choice.selected for choice in choices]).clamp(max=num_modules)  # (R, B, T, K)
    rounds, device = len(choices), selected.device
    counted = real.long()[None, :, :, None].expand_as(selected)
    place = torch.arange(rounds, device=device).view(-1, 1, 1, 1) * slots + selected
    use = torch.zeros(rounds * slots, dtype=torch.int64, device=device)
    use.scatter_add_(0, place.flatten(), counted.flatten())
    first = selected[..., 0]  # (R, B, T)
    pair = torch.arange(rounds - 1, device=device).view(-1, 1, 1) * slots**2 + first[:-1] * slots + first[1:]
    flow = torch.zeros((rounds - 1) * slots**2, dtype=torch.int64, device=device)
    flow.scatter_add_(0, pair.flatten(), counted[:-1, ..., 0].flatten())
    return {"use": use.view(rounds, slots), "flow": flow.view(rounds - 1, slots, slots)}


def token_depths(
    routing: Sequence[RoundRecord], *, num_attention_modules: int, num_ffn_modules: int, fixed_depth: int
) -> dict[str, Tensor]:
    """Depth of every token in blocks, [B, T] float32, by name (:data:`DEPTHS`).

    By the definitions of :func:`mom.metrics.routing.depth_metrics`, token by token.
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
