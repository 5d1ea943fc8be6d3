"""Turn router scores into choices: softmax, top-K, weights, and the record that the model returns."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Routing(NamedTuple):
    """The decisions of a router in a round, for every token.

    Attributes:
        scores: router scores, [B, T, N+1], float32; probabilities unless ``score_function`` is ``identity``.
            The last column is SKIP (the sum over all outputs that mean SKIP).
        selected: the K choices, best first, [B, T, K], int64; index N is SKIP.
        weights: weight of each choice, [B, T, K], float32.
        logits: input of the softmax: router outputs over temperature, -inf for unreachable slots, [B, T, slots],
            float32.
    """

    scores: Tensor
    selected: Tensor
    weights: Tensor
    logits: Tensor

    @property
    def num_modules(self) -> int:
        """Modules N of the pool; index N is SKIP."""
        return self.scores.shape[-1] - 1

    @property
    def took_module(self) -> Tensor:
        """Whether each token runs any module in this step, boolean [B, T]."""
        return (self.selected < self.num_modules).any(dim=-1)


class RoundRouting(NamedTuple):
    """The decisions of a round: a record for each pool, in the order of ``config.pools()``."""

    attention: Routing
    ffn: Routing


@cache
def round_type(names: tuple[str, ...]) -> Callable[..., RoundRouting]:
    """Return the record type of a round, a named tuple with a field for each pool."""
    if names == RoundRouting._fields:
        return RoundRouting
    return namedtuple("RoundRouting", names)  # type: ignore[return-value]


def by_pool(routing: Sequence[RoundRouting], num_rounds: int) -> list[tuple[Routing, ...]]:
    """Return the H records of each pool of each stage, stage by stage, pools in the order of a round."""
    stages = (routing[start : start + num_rounds] for start in range(0, len(routing), num_rounds))
    return [records for stage in stages for records in zip(*stage, strict=True)]


class _StraightThroughSign(torch.autograd.Function):
    """The sign of a weight; passes gradients through, clamped to [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        return weights.sign()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-1, 1)


class _OneWithGradient(torch.autograd.Function):
    """The weight 1 of a single choice, with the gradient of the logarithm of its score among the modules.

    SKIP is not among them, since it learns from trials alone (:mod:`mom.model.skipping`). The weight of an unreachable
    choice, whose logit is -inf, is 0 without a gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, selected: Tensor, num_modules: int) -> Tensor:
        weights = (logits.gather(-1, selected) > float("-inf")).to(logits.dtype)  # (B, T, 1)
        ctx.save_for_backward(logits, selected, weights)
        ctx.num_modules = num_modules
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, selected, weights = ctx.saved_tensors  # (B, T, slots), then (B, T, 1)
        grad = grad * weights
        scores = softmax_over_slots(logits[..., : ctx.num_modules])
        scores = scores.nan_to_num()  # 0 if no module is reachable
        grad_logits = F.pad(-grad * scores, (0, logits.shape[-1] - ctx.num_modules))
        return grad_logits.scatter_add_(-1, selected, grad), None, None


def softmax_over_slots(logits: Tensor) -> Tensor:
    """Return the softmax over the last dimension, which is faster over the first where there are few slots."""
    return logits.movedim(-1, 0).softmax(dim=0).movedim(0, -1)


def choose(
    logits: Tensor,
    *,
    num_modules: int,
    top_k: int,
    normalize: bool,
    keep_gradient: bool = False,
    softmax: bool = True,
    straight_through: bool = False,
    leave_when_skip_first: bool = False,
    reachable: Tensor | None = None,
    ranking: Tensor | None = None,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    taken: Tensor | None = None,
    forced: Tensor | None = None,
) -> Routing:
    """Choose K slots for each token (paper, section 3.2).

    Slots are ranked by their logits, because probabilities can underflow to 0 and then tie.

    Args:
        logits: router outputs over temperature, [B, T, slots]; slots from ``num_modules`` on mean SKIP.
        num_modules: modules N in the pool.
        top_k: choices K.
        normalize: make the K weights sum to 1.
        keep_gradient: with ``normalize`` and K = 1, the weight 1 has the gradient of the logarithm of the score among
            modules, or the router would have none (straight-through: Bengio et al. 2013, arXiv 1308.3432).
        softmax: scores are ``softmax(logits)``; otherwise the logits themselves.
        straight_through: replace weights by their sign and pass gradients through.
        leave_when_skip_first: ``skip_rule: first``; if SKIP ranks first, it gets all K assignments.
        reachable: slots that this round may choose, boolean [slots], or for each token [B, 1 or T, slots]; all by
            default. If there are fewer than K, SKIP gets the other assignments with weight 0.
        ranking: ranked instead of the logits, [B, T, slots].
        noise: added to the logits for ranking only, [B, T, slots].
        bias: added to the scores for ranking only, [slots]; the logits rank slots with equal sums.
        taken: modules that may run for each token, boolean [B, T, N]: with expert choice, those that take it. They rank
            before SKIP. If there are fewer than K, SKIP gets the other assignments, all but one with weight 0.
        forced: choices to make regardless of the ranking, int64 [B, T, K]; index N is SKIP, and -1 leaves a choice to
            the ranking.

    Returns:
        The record; gradients reach the argument through ``scores``, ``weights``, and ``logits``.
    """
    logits = logits.float()  # (B, T, slots); float32 regardless of the surrounding precision
    allowed = logits if reachable is None else logits.masked_fill(~reachable, float("-inf"))
    if softmax:
        scores = softmax_over_slots(allowed)
    else:
        scores = logits if reachable is None else logits.masked_fill(~reachable, 0.0)
    ranks_logits = ranking is None
    if ranking is None:
        ranking = allowed.detach() if noise is None else allowed.detach() + noise
    elif reachable is not None:
        ranking = ranking.masked_fill(~reachable, float("-inf"))
    if bias is not None:
        biased = (ranking.softmax(dim=-1) if softmax and ranks_logits else ranking) + bias
        ranking = _rank_by_both(biased.masked_fill(ranking == float("-inf"), float("-inf")), ranking)
    if taken is not None:
        taken = F.pad(taken, (0, logits.shape[-1] - num_modules), value=True)  # (B, T, slots)
        ranking = ranking.masked_fill(~taken, float("-inf"))
        ranking[..., num_modules:] = torch.finfo(ranking.dtype).min / 2  # after every module that may run
        if forced is not None:
            taken = taken | contains_slot(forced, logits.shape[-1])
    best = ranking.topk(top_k, dim=-1).indices
    selected = best if forced is None else _fill(ranking, forced, num_modules)  # (B, T, K)
    if normalize and softmax and top_k == 1 and keep_gradient:
        weights = _OneWithGradient.apply(allowed, selected, num_modules)
    elif normalize and softmax:
        # As `scores / scores.sum()` of the chosen, but defined even if all of their scores underflow to 0.
        chosen = allowed.gather(-1, selected)  # (B, T, K); -inf for unreachable slots, all if they are forced
        weights = chosen.clamp_min(torch.finfo(chosen.dtype).min).softmax(dim=-1)
        weights = weights.masked_fill(chosen == float("-inf"), 0.0)
    else:
        assert not normalize, "raw scores can sum to 0"
        weights = scores.gather(-1, selected)
    if reachable is not None:
        # A round with fewer slots than assignments, as with ``top_k: all`` and a schedule: SKIP gets the rest.
        selected = torch.where(reachable.expand_as(scores).gather(-1, selected), selected, num_modules)
    if taken is not None:
        may_run = taken.gather(-1, selected)  # (B, T, K)
        selected, weights = torch.where(may_run, selected, num_modules), weights * may_run
    if straight_through:
        weights = _StraightThroughSign.apply(weights)
    if scores.shape[-1] > num_modules + 1:  # several slots mean SKIP
        skip_score = scores[..., num_modules:].sum(dim=-1, keepdim=True)
        scores = torch.cat([scores[..., :num_modules], skip_score], dim=-1)  # (B, T, N+1)
        selected = selected.clamp(max=num_modules)
    if leave_when_skip_first:
        selected = torch.where(selected[..., :1] == num_modules, num_modules, selected)
    return Routing(scores, selected, weights, allowed)


def _rank_by_both(first: Tensor, second: Tensor) -> Tensor:
    """Return numbers that rank slots by ``first``, and by ``second`` where that ties; all [B, T, slots]."""
    order = second.argsort(dim=-1, descending=True, stable=True)
    again = first.gather(-1, order).argsort(dim=-1, descending=True, stable=True)
    return -order.gather(-1, again).argsort(dim=-1).float()


def contains_slot(forced: Tensor, num_slots: int) -> Tensor:
    """Return which slots forced choices name, [B, T, K] → boolean [B, T, slots]."""
    return (forced[..., None] == torch.arange(num_slots, device=forced.device)).any(dim=-2)


def _fill(ranking: Tensor, forced: Tensor, num_modules: int) -> Tensor:
    """Fill the K places of each token with its forced choices and, in the others, the best of the remaining slots."""
    if ranking.shape[-1] > num_modules + 1:  # several slots mean SKIP; take the best
        best_skip = num_modules + ranking[..., num_modules:].argmax(dim=-1, keepdim=True)  # (B, T, 1)
        forced = torch.where(forced == num_modules, best_skip, forced)
    repeated = (forced[..., None] == forced[..., None, :]).tril(-1).any(dim=-1)  # (B, T, K)
    forced = forced.masked_fill(repeated, -1)
    free = forced < 0
    # Unreachable slots rank before forced ones, which must not be chosen twice.
    ranking = ranking.clamp_min(torch.finfo(ranking.dtype).min)
    others = ranking.masked_fill(contains_slot(forced, ranking.shape[-1]), float("-inf"))
    own = others.topk(forced.shape[-1], dim=-1).indices  # (B, T, K)
    return torch.where(free, own.gather(-1, (free.cumsum(-1) - 1).clamp_min(0)), forced)


def leave(routing: Routing, exited: Tensor) -> Routing:
    """Make SKIP the only choice of tokens that have exited the stage (``absorbing_skip``), boolean [B, T].

    SKIP gets probability 1 and all K assignments, the first with all the weight; the router gets no gradient.
    """

    def fill(tensor: Tensor, columns: slice, value: float, rest: float) -> Tensor:
        filled = torch.full_like(tensor[:1, :1], rest)  # (1, 1, columns)
        filled[..., columns] = value
        return torch.where(exited[..., None], filled, tensor)

    skip = slice(routing.num_modules, None)
    return Routing(
        scores=fill(routing.scores, skip, 1.0, 0.0),
        selected=routing.selected.masked_fill(exited[..., None], routing.num_modules),
        weights=fill(routing.weights, slice(0, 1), 1.0, 0.0),
        logits=fill(routing.logits, skip, 0.0, float("-inf")),
    )
