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

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mom.metrics.sums import Sums, Totals

POOLS = ("attention", "ffn")


class PoolRecord(Protocol):
    """What one pool of one round recorded."""

    scores: Tensor  # [B, T, >= N+1] probabilities
    selected: Tensor  # [B, T, K] choices
    weights: Tensor  # [B, T, K] their weights


class RoundRecord(Protocol):
    """What one round recorded."""

    attention: PoolRecord
    ffn: PoolRecord


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
        ``balance_loss``: Switch's ``N' Σ f_i P_i`` (:func:`mom.model.losses.balance_loss`) of the whole window,
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


def agreement_sums(choices: Sequence[PoolRecord], mask: Tensor, *, num_stages: int) -> Sums:
    """How often the first choice is that of the round before.

    Args:
        choices: one kind of pool's records of all rounds, stages in order (R, a multiple of ``num_stages``).
        mask: [B, T] boolean, true where there is a token and not padding.
        num_stages: S; the first round of a stage follows none.

    Returns:
        ``pairs``, token-steps with a round before; ``agreeing``, those that chose the same first.
    """
    real = mask.bool()
    first = torch.stack([choice.selected[..., 0] for choice in choices])  # (R, B, T)
    first = first.view(num_stages, -1, *real.shape)  # (S, H, B, T)
    same = (first[:, 1:] == first[:, :-1]) & real  # (S, H-1, B, T)
    return {"pairs": real.sum() * same.shape[0] * same.shape[1], "agreeing": same.sum()}


def path_keys(routing: Sequence[RoundRecord]) -> Tensor:
    """A number for every token that is the same for the same path, [B, T], int64.

    A random linear function of the choices, sorted within a step, modulo 2^64: two paths that differ get the same
    number with a probability of about 2^-63. Seeded, so that ranks and windows agree.
    """
    steps = [
        getattr(record, pool).selected.sort(dim=-1).values for record in routing for pool in POOLS
    ]  # 2R of (B, T, K)
    choices = torch.cat(steps, dim=-1)  # (B, T, sum of K)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (choices.shape[-1],), generator=generator)
    return (choices * factors.to(choices.device)).sum(dim=-1)


def distinct_sums(keys: Tensor) -> Sums:
    """Different numbers in each row.

    Args:
        keys: [rows, columns], int64.

    Returns:
        ``distinct``, summed over rows; ``thousands``, the number of rows.
    """
    ordered = keys.sort(dim=-1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum()
    rows = torch.tensor(len(keys), device=keys.device)
    return {"distinct": changes + rows, "thousands": rows}
