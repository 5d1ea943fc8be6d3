"""Balance: the balance loss of Switch Transformers, a bias instead of a loss, and the router z-loss of ST-MoE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mom.model.routing import RoundRouting, Routing


def balance_loss(
    routing: Sequence[RoundRouting],
    num_rounds: int,
    mask: Tensor | None = None,
    *,
    include_skip: bool = True,
    scope: str = "microbatch",
) -> Tensor:
    """Sum over pools of ``N' · Σ_i f_i P_i`` (Fedus et al. 2021, eq. 4–6, with K choices).

    A pool's rounds count together. ``f_i`` is the share of all K choices that went to i and ``P_i`` the mean
    probability of i, both over real tokens. The least value, at perfect balance, is 1 for each pool.

    With ``scope="global"`` the tokens of all ranks count together: each rank returns the loss of the whole
    micro-batch, with the gradient of its own share times the number of ranks, so that averaging gradients
    over ranks (as DDP does) gives the gradient of one process that holds all the tokens. The micro-batches of
    an accumulation window still count one by one. Every rank has to call it, since it is one all-reduce.

    Args:
        routing: every round of every stage, stages in order.
        num_rounds: rounds in a stage.
        mask: real tokens, [B, T]; ``None`` means all.
        include_skip: SKIP is one of the N' = N+1 choices; otherwise shares are taken among modules only.
        scope: ``microbatch``, the tokens given; or ``global``, those of all ranks. The same without ranks.

    Returns:
        A scalar; 0 for a model without routing. The gradient flows through ``P``.
    """
    if not routing:
        return torch.zeros(())
    pools = [
        [getattr(decided, name) for decided in routing[start : start + num_rounds]]
        for start in range(0, len(routing), num_rounds)
        for name in ("attention", "ffn")
    ]
    sums = [_pool_sums(pool, mask, include_skip) for pool in pools]
    if scope == "global" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sums = _over_ranks(sums)
    return torch.stack([_balance(chosen, probability) for chosen, probability in sums]).sum()


def _pool_sums(rounds: Sequence[Routing], mask: Tensor | None, include_skip: bool) -> tuple[Tensor, Tensor]:
    """How often each of the N' slots was chosen, and the sum of its probabilities; both [N']."""
    num_slots = rounds[0].scores.shape[-1]
    probabilities = torch.stack([_probabilities(decided, num_slots) for decided in rounds])  # (H, B, T, N+1)
    selected = torch.stack([decided.selected for decided in rounds])  # (H, B, T, K)
    chosen = torch.nn.functional.one_hot(selected, num_slots).sum(dim=-2)  # (H, B, T, N+1)
    chosen = chosen.to(probabilities.dtype)
    if mask is not None:
        real = mask.to(probabilities.dtype)[None, :, :, None]
        probabilities, chosen = probabilities * real, chosen * real
    if not include_skip:
        probabilities, chosen = probabilities[..., :-1], chosen[..., :-1]
    return chosen.sum(dim=(0, 1, 2)), probabilities.sum(dim=(0, 1, 2))


def _over_ranks(sums: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The sums of all ranks in one all-reduce; the gradient goes to this rank's own, times the ranks."""
    own = torch.cat([part for pair in sums for part in pair])
    total = own.detach().clone()
    dist.all_reduce(total)
    total = total + dist.get_world_size() * (own - own.detach())
    parts = iter(total.split([part.numel() for pair in sums for part in pair]))
    return list(zip(parts, parts, strict=True))


def _balance(chosen: Tensor, probability: Tensor) -> Tensor:
    """``N' · Σ f P`` from the sums of one pool."""
    tiny = torch.finfo(probability.dtype).tiny
    shares = chosen / chosen.sum().clamp_min(tiny)
    means = probability / probability.sum().clamp_min(tiny)
    return shares.shape[0] * (shares * means).sum()


def _probabilities(routing: Routing, num_slots: int) -> Tensor:
    """The softmax, SKIP slots folded into one; a router's raw scores are not probabilities."""
    probabilities = routing.logits.softmax(dim=-1)
    skip = probabilities[..., num_slots - 1 :].sum(dim=-1, keepdim=True)
    return torch.cat([probabilities[..., : num_slots - 1], skip], dim=-1)


def choice_counts(
    routing: Sequence[RoundRouting], num_rounds: int, mask: Tensor | None = None
) -> list[Tensor]:
    """How many of the K places each choice of each pool held, over all rounds of its stage.

    Args:
        routing: every round of every stage, stages in order.
        num_rounds: rounds in a stage.
        mask: real tokens, [B, T]; ``None`` means all.

    Returns:
        One int64 [N+1] for each pool, SKIP last: stage by stage, attention before feed-forward.
    """
    counts = []
    for start in range(0, len(routing), num_rounds):
        for name in ("attention", "ffn"):
            pool = [getattr(decided, name) for decided in routing[start : start + num_rounds]]
            selected = torch.stack([decided.selected for decided in pool])  # (H, B, T, K)
            real = torch.ones_like(selected)
            if mask is not None:
                real = real * mask.to(real.dtype)[None, :, :, None]
            count = real.new_zeros(pool[0].scores.shape[-1])
            counts.append(count.scatter_add_(0, selected.flatten(), real.flatten()))
    return counts


def moved_bias(
    bias: Tensor, counts: Tensor, rate: float, *, open_choices: Tensor, include_skip: bool
) -> Tensor:
    """The selection bias after one optimiser step (Wang et al. 2024, arXiv 2408.15664, algorithm 1).

    ``b_i + rate · sign(mean load - load_i)``: what was taken less than the mean gains, what was taken more loses.
    The rule of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) is the same.

    Args:
        bias: of each choice, SKIP last, [N+1].
        counts: places that each choice held in the step's batch, all micro-batches and ranks together, [N+1].
        rate: what a bias moves by.
        open_choices: choices that some round can reach, boolean [N+1]; the others stay and count in no mean.
        include_skip: SKIP is to be balanced too; otherwise its bias stays 0.

    Returns:
        The new bias, [N+1].
    """
    counted = open_choices.clone()
    if not include_skip:
        counted[-1] = False
    load = counts.to(torch.float64)
    mean = (load * counted).sum() / counted.sum().clamp_min(1)
    step = rate * torch.sign(mean - load) * counted
    return bias + step.to(bias.dtype)


def z_loss(routing: Sequence[RoundRouting], mask: Tensor | None = None) -> Tensor:
    """Mean over rounds, routers and real tokens of ``logsumexp(logits)²`` (Zoph et al. 2022, eq. 5).

    Args:
        routing: every round of every stage.
        mask: real tokens, [B, T]; ``None`` means all.

    Returns:
        A scalar; 0 for a model without routing.
    """
    if not routing:
        return torch.zeros(())
    logits = [decision.logits for decided in routing for decision in (decided.attention, decided.ffn)]
    squares = torch.stack([part.logsumexp(dim=-1).square() for part in logits])  # (2 · rounds, B, T)
    if mask is None:
        return squares.mean()
    real = mask.to(squares.dtype)
    return (squares * real).sum() / (real.sum() * len(logits)).clamp_min(1.0)
