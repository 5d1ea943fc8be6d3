"""The language-model loss, computed in chunks, and the auxiliary losses of routing.

In all functions, ``routing`` holds every round of every stage, stages in order, and ``mask`` marks the real tokens,
[B, T]; ``None`` means all. The auxiliary losses are scalars, 0 for a model without routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mom.model.expert_choice import capacity_loss
from mom.model.options import ModelOptions
from mom.model.pools.pool import product_dtype
from mom.model.routing import RoundRouting, Routing, by_pool

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
) -> dict[str, Tensor]:
    """Return the auxiliary losses, and their weighted sum with the task's loss.

    A loss with coefficient 0 is only reported: it is detached and not part of the sum, since it may be infinite.

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
    return losses | {"loss": add_losses(config, task_loss, losses)}


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
    num_slots = rounds[0].scores.shape[-1]
    probabilities = torch.stack([_probabilities(step, num_slots) for step in rounds])  # (H, B, T, N+1)
    selected = torch.stack([step.selected for step in rounds])  # (H, B, T, K)
    chosen = F.one_hot(selected, num_slots).sum(dim=-2)  # (H, B, T, N+1)
    chosen = chosen.to(probabilities.dtype)
    if mask is not None:
        real = mask.to(probabilities.dtype)[None, :, :, None]
        probabilities, chosen = probabilities * real, chosen * real
    if not include_skip:
        probabilities, chosen = probabilities[..., :-1], chosen[..., :-1]
    return chosen.sum(dim=(0, 1, 2)), probabilities.sum(dim=(0, 1, 2))


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


def _probabilities(step: Routing, num_slots: int) -> Tensor:
    """Return the softmax of the logits, [B, T, N+1], with the outputs that mean SKIP summed."""
    probabilities = step.logits.softmax(dim=-1)
    skip = probabilities[..., num_slots - 1 :].sum(dim=-1, keepdim=True)
    return torch.cat([probabilities[..., : num_slots - 1], skip], dim=-1)


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
    logits = [step.logits for decisions in routing for step in decisions]
    squares = torch.stack([part.logsumexp(dim=-1).square() for part in logits])  # (pools · rounds, B, T)
    if mask is None:
        return squares.mean()
    real = mask.to(squares.dtype)
    return (squares * real).sum() / (real.sum() * len(logits)).clamp_min(1.0)


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


# `torch.nn.functional.linear_cross_entropy` rounds the loss of bfloat16 inputs to bfloat16 (10.94 instead of 10.967),
# too coarse for a learning curve; the function below sums in float32.

CHUNK_TOKENS = 256
"""Tokens whose logits are in memory at a time; larger chunks were no faster (docs/performance.md)."""


def head_cross_entropy(head: nn.Module, hidden: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean cross-entropy of a head's logits without materializing all of them at once.

    A plain linear head is not called: its gradient is computed with its loss (:func:`chunked_cross_entropy`). Any other
    head, such as one with an adapter, hooks, or quantized weights, is called once per chunk, and again in the backward
    pass.

    Args:
        head: maps [1, m, D] to logits, [1, m, V].
        hidden: [M, D].
        labels: [M], int64; ``ignore_index`` is not counted.

    Returns:
        A scalar in nats; NaN if no label counts, as in PyTorch.
    """
    if _is_plain_linear(head):
        return chunked_cross_entropy(hidden.to(product_dtype(hidden)), head.weight, labels, ignore_index)

    def chunk_nats(rows: Tensor, target: Tensor) -> Tensor:
        logits = head(rows[None])[0]  # (m, V)
        logits = logits.to(_sum_dtype(logits))
        return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")

    chunks = zip(hidden.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)
    nats = [checkpoint(chunk_nats, rows, target, use_reentrant=False) for rows, target in chunks]
    return torch.stack(nats).sum() / (labels != ignore_index).sum()


def _is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether calling a head only multiplies by its weight.

    Adapters and parametrizations change the class of the head, quantization that of the head or the weight.
    """
    return (
        type(head) is nn.Linear
        and type(head.weight) in (nn.Parameter, Tensor)
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not (head._backward_hooks or head._backward_pre_hooks)
        and head.bias is None
    )


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums over a tensor: at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, while the chunk's logits are in memory.

    They are those of the sum over tokens. Only the backward pass divides by their number and multiplies by the incoming
    gradient, in float32: float16 can hold neither a loss scale of 65,536 nor an unscaled gradient per token.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, with_grad: bool
    ) -> Tensor:
        counted = labels != ignore_index  # (M,)
        num_counted = counted.sum()
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if with_grad and hidden.requires_grad else None
        grad_weight = (
            torch.zeros_like(weight, dtype=_sum_dtype(weight)) if with_grad and weight.requires_grad else None
        )
        # Allocate once: on a CPU, new memory for every chunk costs as much as the arithmetic.
        size = min(CHUNK_TOKENS, hidden.shape[0])
        logits_buffer = hidden.new_empty(size, weight.shape[0])
        sum_buffer = torch.empty_like(logits_buffer, dtype=_sum_dtype(hidden))
        total = sum_buffer.new_zeros(())
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            rows = slice(start, min(start + CHUNK_TOKENS, hidden.shape[0]))
            logits = logits_buffer[: rows.stop - start]  # (m, V)
            log_probabilities = sum_buffer[: rows.stop - start]
            target = torch.where(counted[rows], labels[rows], 0)[:, None]  # (m, 1)
            torch.mm(hidden[rows], matrix.t(), out=logits)
            torch.log_softmax(logits, -1, dtype=sum_buffer.dtype, out=log_probabilities)
            total -= (log_probabilities.gather(1, target) * counted[rows, None]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            error = log_probabilities.exp_()
            error.scatter_add_(1, target, torch.full_like(target, -1, dtype=error.dtype))
            error = logits.copy_(error)  # (m, V): probabilities minus the label
            if grad_hidden is not None:
                torch.mm(error, matrix, out=grad_hidden[rows])
            if grad_weight is not None:
                inputs = hidden[rows] * counted[rows, None]
                if grad_weight.dtype == error.dtype:
                    grad_weight.addmm_(error.t(), inputs)
                else:
                    grad_weight += error.t() @ inputs
        ctx.save_for_backward(grad_hidden, grad_weight, counted, num_counted)
        ctx.weight_dtype = weight.dtype
        return total / num_counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, counted, num_counted = ctx.saved_tensors
        scale = grad / num_counted.clamp_min(1)
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * (scale * counted)[:, None]).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean cross-entropy of ``hidden @ weight.T`` without materializing all logits at once.

    Args:
        hidden: [M, D]; matmuls run in its dtype, softmax and sums in at least float32.
        weight: the output head, [V, D].
        labels: [M], int64; ``ignore_index`` is not counted.

    Returns:
        A scalar in nats, float32 (float64 from float64); NaN if no label counts, as in PyTorch.
    """
    # Within the function, autograd is always off.
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, ignore_index, torch.is_grad_enabled())
