"""The auxiliary losses of routing, and the total.

In all functions, ``routing`` holds every round of every stage, stages in order, and ``mask`` marks the real tokens,
[B, T]; ``None`` means all. The auxiliary losses are scalars, 0 for a model without routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mom.model.cross_entropy import as_count
from mom.model.expert_choice import capacity_loss
from mom.model.options import ModelOptions
from mom.model.routing import RoundRouting, Routing, by_pool, softmax_over_slots

COEFFICIENTS = {
    "balance_loss": "balance_coefficient",
    "z_loss": "z_loss_coefficient",
    "depth_loss": "depth_coefficient",
    "capacity_loss": "capacity_coefficient",
}
"""The auxiliary losses by their name in the model's output, and the options that weight them."""


def routing_losses(
    config: ModelOptions,
    routing: Sequence[RoundRouting],
    mask: Tensor | None,
    task_loss: Tensor,
    share: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the auxiliary losses, and their weighted sum with the task's loss.

    A loss with coefficient 0 is only reported: it is detached and not part of the sum, since it may be infinite.

    Args:
        share: this batch's share of the targets that ``task_loss`` is divided by, if these are those of several batches
            (:func:`window_share`). The auxiliary losses are multiplied by it in the sum, but not where reported.

    Returns:
        The losses that :func:`loss_names` lists, and the total, ``loss``.
    """
    terms: dict[str, Callable[[], Tensor]] = {
        "balance_loss": lambda: balance_loss(
            routing, config.num_rounds, mask, include_skip=config.balance_skip
        ),
        "z_loss": lambda: z_loss(routing, mask),
        "depth_loss": lambda: depth_loss(config, routing, mask),
        "capacity_loss": lambda: capacity_loss(config, routing, mask),
    }
    losses = {}
    for name in loss_names(config):
        with torch.set_grad_enabled(torch.is_grad_enabled() and coefficient(config, name) != 0):
            losses[name] = terms[name]().to(task_loss.device)
    shared = losses if share is None else {name: term * share for name, term in losses.items()}
    return losses | {"loss": add_losses(config, task_loss, shared)}


def window_share(num_targets: Tensor, num_items: Tensor | int | None) -> Tensor | None:
    """Return a batch's share of an accumulation window's targets, a scalar; ``None`` for a batch on its own."""
    return None if num_items is None else num_targets / as_count(num_items, num_targets.device)


def loss_names(config: ModelOptions) -> list[str]:
    """Return the names of the auxiliary losses that a model reports."""
    applies = {
        "balance_loss": True,
        "z_loss": True,
        "depth_loss": config.num_stages > 0 and config.depth_target is not None,
        "capacity_loss": config.num_stages > 0 and any(layout.capacity for layout in config.pools()),
    }
    return [name for name in COEFFICIENTS if applies[name]]


def coefficient(config: ModelOptions, name: str) -> float:
    """Return the coefficient of an auxiliary loss, by its name in :data:`COEFFICIENTS`."""
    return getattr(config, COEFFICIENTS[name])


def add_losses(config: ModelOptions, loss: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
    """Add the auxiliary losses times their coefficients, but not those with coefficient 0."""
    for name, term in losses.items():
        if coefficient(config, name) != 0:
            loss = loss + coefficient(config, name) * term
    return loss


def balance_loss(
    routing: Sequence[RoundRouting],
    num_rounds: int,
    mask: Tensor | None = None,
    *,
    include_skip: bool = True,
    scope: str = "microbatch",
) -> Tensor:
    """Sum ``N' · Σ_i f_i P_i`` over pools (Fedus et al. 2021, eq. 4–6, with K choices); only ``P`` has a gradient.

    A pool's rounds count together. ``f_i`` is the fraction of all K choices that went to i and ``P_i`` the mean
    probability of i, both over real tokens. The minimum, at perfect balance, is 1 for each pool.

    With ``scope="global"``, the tokens of all ranks count together: each rank returns the loss over all ranks, with the
    gradient of its own part times the number of ranks, so that averaging gradients over ranks (as DDP does) gives the
    gradient of a single process with all tokens. With gradient accumulation, each micro-batch counts separately. Every
    rank must call it, since it runs an all-reduce.

    Args:
        num_rounds: rounds H in a stage.
        include_skip: SKIP is one of the N' = N+1 choices; otherwise only modules count.
        scope: ``microbatch`` for the given tokens; ``global`` for those of all ranks.
    """
    if not routing:
        return torch.zeros(())
    sums = [_pool_sums(rounds, mask, include_skip) for rounds in by_pool(routing, num_rounds)]
    if scope == "global" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sums = _over_ranks(sums)
    return torch.stack([balance(chosen, probability) for chosen, probability in sums]).sum()


def _pool_sums(rounds: Sequence[Routing], mask: Tensor | None, include_skip: bool) -> tuple[Tensor, Tensor]:
    """Return the assignments to each of the N' choices, and the sum of its probabilities; both [N']."""
    num_modules = rounds[0].num_modules
    logits = torch.stack([step.logits for step in rounds])
    probabilities = softmax_over_slots(logits)  # (H, B, T, slots)
    if mask is not None:
        probabilities = probabilities * mask.to(probabilities.dtype)[None, :, :, None]
    sums = probabilities.sum(dim=(0, 1, 2))  # (slots,)
    skip = sums[num_modules:].sum(dim=0, keepdim=True)  # (1,); several slots may mean SKIP
    sums = torch.cat([sums[:num_modules], skip])  # (N+1,)
    chosen = count_choices(rounds, mask).sum(dim=0).to(sums.dtype)  # (N+1,)
    return (chosen, sums) if include_skip else (chosen[:-1], sums[:-1])


def _over_ranks(sums: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Add the sums of all ranks in an all-reduce; this rank's sums get the gradient, times the number of ranks."""
    own = torch.cat([part for pair in sums for part in pair])
    total = own.detach().clone()
    dist.all_reduce(total)
    total = total + dist.get_world_size() * (own - own.detach())
    parts = iter(total.split([part.numel() for pair in sums for part in pair]))
    return list(zip(parts, parts, strict=True))


def balance(chosen: Tensor, probability: Tensor) -> Tensor:
    """Return ``N' · Σ f P`` of one pool.

    Args:
        chosen: assignments to each choice, [N'].
        probability: sum of its probabilities, [N'].
    """
    tiny = torch.finfo(probability.dtype).tiny
    shares = chosen / chosen.sum().clamp_min(tiny)
    means = probability / probability.sum().clamp_min(tiny)
    return shares.shape[0] * (shares * means).sum()


def count_choices(choices: Sequence[Routing], mask: Tensor | None = None) -> Tensor:
    """Count the assignments to each choice of a pool in each of R rounds, [R, N+1], int64, SKIP last."""
    selected = torch.stack([choice.selected for choice in choices])  # (R, B, T, K)
    real = torch.ones_like(selected)
    if mask is not None:
        real = real * mask.to(real.dtype)[None, :, :, None]
    counts = real.new_zeros(len(choices), choices[0].num_modules + 1)
    return counts.scatter_add_(1, selected.flatten(1), real.flatten(1))


def choice_counts(
    routing: Sequence[RoundRouting], num_rounds: int, mask: Tensor | None = None
) -> list[Tensor]:
    """Count the assignments to each choice of each pool over all ``num_rounds`` rounds of its stage.

    Returns:
        An int64 [N+1] for each pool, SKIP last: stage by stage, in the order of a round.
    """
    return [count_choices(rounds, mask).sum(dim=0) for rounds in by_pool(routing, num_rounds)]


def moved_bias(
    bias: Tensor, counts: Tensor, rate: float, *, open_choices: Tensor, include_skip: bool
) -> Tensor:
    """Return the selection bias after an optimizer step, [N+1] (Wang et al. 2024, arXiv 2408.15664, algorithm 1).

    ``b_i + rate · sign(mean load - load_i)``: the bias rises for choices below the mean load and falls for those above,
    as in DeepSeek-V3 (arXiv 2412.19437, section 2.1.2).

    Args:
        bias: bias of each choice, SKIP last, [N+1].
        counts: assignments to each choice in the step, over all micro-batches and ranks, [N+1].
        rate: change of a bias per step.
        open_choices: choices that some round can reach, boolean [N+1]; the others keep their bias and do not count.
        include_skip: balance SKIP too; otherwise its bias stays 0.
    """
    counted = open_choices.clone()
    if not include_skip:
        counted[-1] = False
    load = counts.to(torch.float64)
    mean = (load * counted).sum() / counted.sum().clamp_min(1)
    step = rate * torch.sign(mean - load) * counted
    return bias + step.to(bias.dtype)


def z_loss(routing: Sequence[RoundRouting], mask: Tensor | None = None) -> Tensor:
    """Average ``logsumexp(logits)²`` over rounds, routers, and real tokens (Zoph et al. 2022, eq. 5)."""
    if not routing:
        return torch.zeros(())
    pools = [torch.stack([step.logits for step in steps]) for steps in zip(*routing, strict=True)]
    squares = torch.cat([logits.logsumexp(dim=-1).square() for logits in pools])  # (pools · rounds, B, T)
    if mask is None:
        return squares.mean()
    real = mask.to(squares.dtype)
    return (squares * real).sum() / (real.sum() * len(squares)).clamp_min(1.0)


def depth_loss(config: ModelOptions, routing: Sequence[RoundRouting], mask: Tensor | None = None) -> Tensor:
    """Return the squared distance between effective depth and ``depth_target``, relative to the number of rounds.

    ``((d - depth_target) / (num_stages · num_rounds))²``, where d is the mean effective depth of the given tokens.
    Whether a token runs a module is not differentiable, so the gradient is that of the probability that it does,
    1 - p_SKIP (a straight-through estimator: Bengio et al. 2013, arXiv 1308.3432).
    """
    assert config.depth_target is not None
    if not routing:
        return torch.zeros(())
    steps = [step for decisions in routing for step in decisions]
    hard = torch.stack([step.took_module.float() for step in steps])  # (pools · rounds, B, T)
    # The first N probabilities are those of the modules, regardless of the number of SKIP outputs.
    soft = torch.stack([step.logits.softmax(-1)[..., : step.num_modules].sum(-1) for step in steps])
    ran = hard + soft - soft.detach()
    real = torch.ones_like(ran[0]) if mask is None else mask.to(ran.dtype)
    fraction = (ran * real).sum() / (real.sum() * len(steps)).clamp_min(1.0)
    return (fraction + (config.fixed_depth - config.depth_target) / len(routing)).square()
