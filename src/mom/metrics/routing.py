"""Routing metrics, computed from sums that add up over micro-batches, batches, and ranks.

Every statistic takes four steps: a function turns the records of a forward pass and a mask of real tokens into a
dictionary of *sums* (tensors on the model's device; nothing is read back), :func:`~mom.metrics.sums.add` adds the sums
of several passes, :func:`~mom.metrics.sums.collect` sums them over ranks and moves them to the host in one transfer,
and a function of the totals computes the metrics. So an average over a validation set weights every token equally,
regardless of batching.

Shapes: B batch, T tokens, R rounds over all stages, K choices per step, N modules in a pool, S stages. Choice N is
SKIP. A *step* is one token passing one pool in one round; an *assignment* is one of its K choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mom.metrics.sums import Sums, Totals
from mom.model import RoundRouting, Routing
from mom.model.losses import balance, count_choices


def routing_sums(choices: Sequence[Routing], mask: Tensor, *, num_stages: int) -> Sums:
    """Return the sums from which :func:`routing_metrics` computes the metrics of a pool for a forward pass.

    Args:
        choices: the pool's records of all rounds, stages in order (R, a multiple of ``num_stages``).
        mask: [B, T] boolean, true for tokens, false for padding.
        num_stages: S; each stage has its own modules.

    Returns:
        ``load`` [S, N], assignments to each module; ``assignments``, including those to SKIP; ``steps``;
        ``skipped_steps``, steps in which no module ran; and, summed over steps, ``entropy``, the entropy of the
        probabilities as a fraction of its maximum; ``first_weight``, the weight of the first choice; and ``scores``
        [S, N+1], the probability of each choice.
    """
    real = mask.bool()
    scores = torch.stack([choice.scores.detach() for choice in choices]).float()  # (R, B, T, N+1)
    in_text = real.expand(len(choices), *real.shape)  # (R, B, T)
    load = count_choices(choices, real).view(num_stages, -1, scores.shape[-1]).sum(dim=1)  # (S, N+1)
    took_module = torch.stack([choice.took_module for choice in choices])  # (R, B, T)
    entropy = torch.special.entr(scores).sum(dim=-1) / torch.log(torch.tensor(float(scores.shape[-1])))
    steps = in_text.sum()
    first_weight = torch.stack([choice.weights[..., 0].detach() for choice in choices]).float()  # (R, B, T)
    return {
        "load": load[:, :-1],
        "assignments": steps * choices[0].selected.shape[-1],
        "steps": steps,
        "skipped_steps": steps - (took_module & in_text).sum(),
        "entropy": (entropy * in_text).sum(),
        "first_weight": (first_weight * in_text).sum(),
        "scores": (scores * in_text.unsqueeze(-1)).view(num_stages, -1, scores.shape[-1]).sum(dim=1),
    }


def routing_metrics(totals: Totals, *, balance_skip: bool = True) -> dict[str, float]:
    """Compute the metrics of one pool from the totals of :func:`routing_sums`.

    Args:
        totals: the collected sums.
        balance_skip: ``MoMConfig.balance_skip``, whether to balance SKIP too.

    Returns:
        ``skip_rate``: fraction of steps in which no module ran, which saves computation. With K ≥ 2 and ``skip_rule:
        share`` at most one assignment goes to SKIP, so this is 0; ``skip_share`` measures the use of SKIP.
        ``skip_share``: fraction of assignments to SKIP.
        ``load_max_over_mean``: assignments to the busiest module over the mean of all modules, averaged over stages; 1
        if all are used equally, N if a single module gets all.
        ``entropy``: entropy of the router's probabilities, including SKIP, over its maximum, averaged over steps; 0 if
        certain, 1 if uniform.
        ``dead_fraction``: fraction of modules that no token took in the window.
        ``first_weight``: mean weight of the first choice; if weights sum to 1, from 1/K (all equal) to 1 (only the
        first counts).
        ``balance_loss``: Switch's ``N' Σ f_i P_i`` (:func:`mom.model.losses.balance_loss`) over the window, averaged
        over stages; 1 at perfect balance, N' if a single choice gets all. Empty if no token was counted.
    """
    steps, assignments = float(totals["steps"]), float(totals["assignments"])
    if steps == 0:
        return {}
    load = totals["load"].double()
    mean = load.mean(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return {
        "skip_rate": float(totals["skipped_steps"]) / steps,
        "skip_share": 1 - float(load.sum()) / assignments,
        "load_max_over_mean": float((load.amax(dim=-1) / mean).mean()),
        "entropy": float(totals["entropy"]) / steps,
        "dead_fraction": float((load == 0).double().mean()),
        "first_weight": float(totals["first_weight"]) / steps,
        "balance_loss": float(_balance_of_stages(totals, balance_skip).mean()),
    }


def assignments_by_choice(totals: Totals) -> Tensor:
    """Return the assignments to each choice of each stage, [S, N+1], SKIP last, from :func:`routing_sums`' totals."""
    load = totals["load"].double()  # (S, N)
    skip = totals["assignments"].double() / len(load) - load.sum(dim=-1)  # every stage has as many rounds
    return torch.cat([load, skip.unsqueeze(-1)], dim=-1)


def _balance_of_stages(totals: Totals, include_skip: bool) -> Tensor:
    """Return ``N' Σ f P`` of each stage, [S]."""
    chosen, scores = assignments_by_choice(totals), totals["scores"].double()  # (S, N+1)
    if not include_skip:
        chosen, scores = chosen[:, :-1], scores[:, :-1]
    return torch.stack([balance(*stage) for stage in zip(chosen, scores, strict=True)])


def pool_sums(choices: Sequence[Routing], mask: Tensor) -> Sums:
    """Count the choices in each round, and the transitions of tokens between consecutive rounds.

    Args:
        choices: one pool's records of all rounds, stages in order.
        mask: [B, T] boolean, true for tokens, false for padding.

    Returns:
        ``use`` [R, N+1], assignments to each choice; ``flow`` [R-1, N+1, N+1], tokens by their first choice in round r
        and in round r+1.
    """
    num_choices, rounds = choices[0].num_modules + 1, len(choices)
    first = torch.stack([choice.selected[..., 0] for choice in choices])  # (R, B, T)
    device = first.device
    offset = torch.arange(rounds - 1, device=device).view(-1, 1, 1) * num_choices**2
    pair = offset + first[:-1] * num_choices + first[1:]  # (R-1, B, T)
    flow = torch.zeros((rounds - 1) * num_choices**2, dtype=torch.int64, device=device)
    flow.scatter_add_(0, pair.flatten(), mask.long().expand_as(pair).flatten())
    return {"use": count_choices(choices, mask), "flow": flow.view(rounds - 1, num_choices, num_choices)}


def choices_by_rule(choices: Sequence[Routing], rules: Tensor, mask: Tensor) -> Tensor:
    """Count the first choices in each round by the rule that applies to the token.

    Args:
        choices: one pool's records of all rounds, stages in order.
        rules: the right module of each token, [B, T] int64; tokens whose value is not from 0 to N - 1 do not count.
        mask: [B, T] boolean, true for tokens, false for padding.

    Returns:
        Tokens [R, N, N+1], int64, by round, rule, and first choice.
    """
    rounds, number = len(choices), choices[0].num_modules
    first = torch.stack([choice.selected[..., 0] for choice in choices])  # (R, B, T)
    counted = mask.bool() & (rules >= 0) & (rules < number)
    row = torch.arange(rounds, device=first.device).view(-1, 1, 1) * number + rules.where(counted, 0)
    cell = row * (number + 1) + first  # (R, B, T)
    counts = torch.zeros(rounds * number * (number + 1), dtype=torch.int64, device=first.device)
    counts.scatter_add_(0, cell.flatten(), counted.long().expand_as(cell).flatten())
    return counts.view(rounds, number, number + 1)


def agreement_sums(choices: Sequence[Routing], mask: Tensor, *, num_stages: int) -> Sums:
    """Count how often the first choice is the same as in the previous round.

    Args:
        choices: one pool's records of all rounds, stages in order (R, a multiple of ``num_stages``).
        mask: [B, T] boolean, true for tokens, false for padding.
        num_stages: S; the first round of a stage has no previous round.

    Returns:
        ``pairs``, steps with a previous round; ``agreeing``, those with the same first choice.
    """
    real = mask.bool()
    first = torch.stack([choice.selected[..., 0] for choice in choices])  # (R, B, T)
    first = first.view(num_stages, -1, *real.shape)  # (S, H, B, T)
    same = (first[:, 1:] == first[:, :-1]) & real  # (S, H-1, B, T)
    return {"pairs": real.sum() * same.shape[0] * same.shape[1], "agreeing": same.sum()}


def path_keys(routing: Sequence[RoundRouting]) -> Tensor:
    """Return a hash of every token's path, [B, T], int64.

    The hash is a random linear function of the choices, sorted within a step, modulo 2^64; two different paths collide
    with a probability of about 2^-63. It is seeded, so that ranks and windows agree.
    """
    steps = [
        choice.selected.sort(dim=-1).values for record in routing for choice in record
    ]  # P·R of (B, T, K)
    choices = torch.cat(steps, dim=-1)  # (B, T, sum of K)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (choices.shape[-1],), generator=generator)
    return (choices * factors.to(choices.device)).sum(dim=-1)


def distinct_sums(keys: Tensor) -> Sums:
    """Count the distinct numbers in each row of ``keys``, [rows, columns], int64.

    Returns:
        ``distinct``, summed over rows; ``thousands``, the number of rows.
    """
    ordered = keys.sort(dim=-1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum()
    rows = torch.tensor(len(keys), device=keys.device)
    return {"distinct": changes + rows, "thousands": rows}
