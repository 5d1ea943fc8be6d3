"""What the routing records say, as sums that can be added over micro-batches, batches and ranks.

Every statistic goes the same way: a function turns the records of one forward pass and a mask of real tokens
into a dictionary of *sums* (tensors on the model's device, nothing is read back), :func:`add` joins the sums
of several passes, :func:`collect` sums them over ranks and brings them to the host in one transfer, and a
function of the totals gives the metrics. So an average over a validation set weighs every token once,
whatever the batches were.

Shapes: B batch, T tokens, R rounds over all stages, K choices per step, N modules in a pool, S stages. A
choice ``>= N`` is SKIP. A *step* is one token passing one pool (attention or FFN) in one round; a *place* is
one of its K choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Sums = dict[str, Tensor]
Totals = dict[str, Tensor]

POOLS = ("attention", "ffn")
DEPTH_QUANTILES = (0.1, 0.5, 0.9)


class PoolRecord(Protocol):
    """What one pool of one round recorded."""

    scores: Tensor  # [B, T, >= N+1] probabilities
    selected: Tensor  # [B, T, K] choices
    weights: Tensor  # [B, T, K] their weights


class RoundRecord(Protocol):
    """What one round recorded."""

    attention: PoolRecord
    ffn: PoolRecord


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


def routing_sums(choices: Sequence[PoolRecord], mask: Tensor, *, num_modules: int, num_stages: int) -> Sums:
    """Sums behind the routing metrics of one kind of pool in one forward pass.

    Args:
        choices: this kind's records of all rounds, stages in order (R, a multiple of ``num_stages``).
        mask: [B, T] boolean, true where there is a token and not padding.
        num_modules: N of the pool.
        num_stages: S; each stage has its own modules.

    Returns:
        ``load`` [S, N], places held by each module; ``places``, all places, SKIP's too; ``steps``,
        token-steps; ``skipped_steps``, those in which no module ran; ``entropy``, entropy of the
        probabilities in nats summed over token-steps, divided by the logarithm of the number of choices;
        ``first_weight``, the weight of the first choice summed over token-steps; ``scores`` [S, N+1], the
        probabilities of each slot summed over token-steps.
    """
    real = mask.bool()
    selected = torch.stack([choice.selected for choice in choices])  # [R, B, T, K]
    scores = torch.stack([choice.scores.detach() for choice in choices]).float()  # [R, B, T, >= N+1]
    here = real.expand(len(choices), *real.shape)  # [R, B, T]
    is_module = (selected < num_modules) & here.unsqueeze(-1)  # [R, B, T, K]
    stage = torch.arange(num_stages, device=real.device).repeat_interleave(len(choices) // num_stages)  # [R]
    slot = stage.view(-1, 1, 1, 1) * num_modules + selected.clamp(max=num_modules - 1)
    load = torch.zeros(num_stages * num_modules, dtype=torch.int64, device=real.device)
    load.scatter_add_(0, slot.flatten(), is_module.flatten().long())
    entropy = torch.special.entr(scores).sum(dim=-1) / torch.log(torch.tensor(float(scores.shape[-1])))
    steps = here.sum()
    return {
        "load": load.view(num_stages, num_modules),
        "places": steps * selected.shape[-1],
        "steps": steps,
        "skipped_steps": steps - is_module.any(dim=-1).sum(),
        "entropy": (entropy * here).sum(),
        "first_weight": (torch.stack([one.weights[..., 0].detach() for one in choices]).float() * here).sum(),
        "scores": (scores * here.unsqueeze(-1)).view(num_stages, -1, scores.shape[-1]).sum(dim=1),
    }


def routing_metrics(totals: Totals, *, balance_skip: bool = True) -> dict[str, float]:
    """How one kind of pool is used, from the totals of :func:`routing_sums`.

    Args:
        totals: the collected sums.
        balance_skip: ``MoMConfig.balance_skip``: whether SKIP is one of the choices to balance.

    Returns:
        ``skip_rate``: share of token-steps in which no module ran, from 0 to 1. With K ≥ 2 and ``skip_rule:
        share`` SKIP can hold only one place, so this is 0 there and ``skip_share`` tells the use of SKIP.
        ``skip_share``: share of places held by SKIP, from 0 to 1.
        ``load_max_over_mean``: the busiest module's places over the mean module's, SKIP left out, averaged
        over stages; 1 when all are used alike, N when one does everything.
        ``entropy``: entropy of the router's probabilities, SKIP included, over its largest possible value,
        averaged over token-steps; 0 certain, 1 undecided.
        ``dead_fraction``: share of modules that no token took in the window, from 0 to 1.
        ``first_weight``: mean weight of the first choice; with weights that sum to 1 from 1/K (all places
        alike) to 1 (the others count for nothing).
        ``balance_loss``: Switch's ``N' Σ f_i P_i`` (:func:`mom.model.balance.balance_loss`) of the whole window,
        averaged over stages; 1 at perfect balance, N' when one choice has all.
        Empty when no token was counted.
    """
    steps, places = float(totals["steps"]), float(totals["places"])
    if steps == 0:
        return {}
    load = totals["load"].double()
    mean = load.mean(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return {
        "skip_rate": float(totals["skipped_steps"]) / steps,
        "skip_share": 1 - float(load.sum()) / places,
        "load_max_over_mean": float((load.amax(dim=-1) / mean).mean()),
        "entropy": float(totals["entropy"]) / steps,
        "dead_fraction": float((load == 0).double().mean()),
        "first_weight": float(totals["first_weight"]) / steps,
        "balance_loss": float(_balance(totals, balance_skip).mean()),
    }


def use_by_slot(totals: Totals) -> Tensor:
    """Places held by each slot of each stage, [S, N+1], SKIP last, from the totals of :func:`routing_sums`."""
    load = totals["load"].double()  # (S, N)
    skip = totals["places"].double() / len(load) - load.sum(dim=-1)  # every stage has as many rounds
    return torch.cat([load, skip.unsqueeze(-1)], dim=-1)


def _balance(totals: Totals, include_skip: bool) -> Tensor:
    """``N' Σ f P`` of each stage, [S]."""
    chosen, scores = use_by_slot(totals), totals["scores"].double()  # (S, N+1)
    if not include_skip:
        chosen, scores = chosen[:, :-1], scores[:, :-1]
    tiny = torch.finfo(torch.float64).tiny
    shares = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=tiny)
    means = scores / scores.sum(dim=-1, keepdim=True).clamp(min=tiny)
    return chosen.shape[-1] * (shares * means).sum(dim=-1)


def add(left: Mapping[str, Tensor] | None, right: Mapping[str, Tensor]) -> Sums:
    """The sums of two passes together; ``left`` is ``None`` before the first."""
    if left is None:
        return dict(right)
    return {name: left[name] + value for name, value in right.items()}


def collect(sums: Mapping[str, Tensor], reduce: Callable[[Tensor], Any] | None = None) -> Totals:
    """Bring sums to the host: one reduction over ranks and one transfer for all of them.

    Args:
        sums: tensors on one device, of any shapes and number types.
        reduce: sums one tensor over ranks; ``None`` on one rank.

    Returns:
        The same names and shapes, float64 on the CPU (counts are exact up to 2^53).
    """
    device = next(iter(sums.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs know no float64
    flat = torch.cat([value.detach().to(dtype).flatten() for value in sums.values()])
    if reduce is not None:
        flat = reduce(flat)
    parts = flat.cpu().double().split([value.numel() for value in sums.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(sums.items(), parts, strict=True)}
