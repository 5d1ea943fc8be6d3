"""From router scores to a choice: softmax, top-K, weights, and the record that the forward returns."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Routing(NamedTuple):
    """What one router decided in one round, for every token.

    Attributes:
        scores: router scores, [B, T, N+1], float32; probabilities unless ``score_function`` is ``identity``.
            The last column is SKIP (the sum over the SKIP slots if a checkpoint has several).
        selected: the K choices, best first, [B, T, K], int64; index N is SKIP.
        weights: weight of each choice, [B, T, K], float32.
        logits: what the softmax is taken of: router outputs over temperature with unreachable slots at -inf,
            [B, T, slots], float32.
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
    """The decisions of one round, one for each pool, in the order of ``config.pools()``."""

    attention: Routing
    ffn: Routing


@cache
def round_type(names: tuple[str, ...]) -> Callable[..., RoundRouting]:
    """Return the record type of a round with these pools; they are its fields, so that it can be iterated."""
    if names == RoundRouting._fields:
        return RoundRouting
    return namedtuple("RoundRouting", names)  # type: ignore[return-value]


def by_pool(routing: Sequence[RoundRouting], num_rounds: int) -> list[tuple[Routing, ...]]:
    """Return the rounds of each pool of each stage, [H] each; stage by stage, pools in the order of a round.

    Args:
        routing: every round of every stage, stages in order.
        num_rounds: rounds H in a stage.
    """
    stages = (routing[start : start + num_rounds] for start in range(0, len(routing), num_rounds))
    return [pool for stage in stages for pool in zip(*stage, strict=True)]


class _StraightThroughSign(torch.autograd.Function):
    """sign(w) forward; the gradient clamped to [-1, 1] backward."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor) -> Tensor:
        return weights.sign()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-1, 1)


def choose(
    logits: Tensor,
    *,
    num_modules: int,
    top_k: int,
    normalize: bool,
    softmax: bool = True,
    straight_through: bool = False,
    leave_when_skip_first: bool = False,
    reachable: Tensor | None = None,
    ranking: Tensor | None = None,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
) -> Routing:
    """Choose K slots for each token (paper, section 3.2).

    Args:
        logits: router outputs over temperature, [B, T, slots]; slots from ``num_modules`` on mean SKIP.
        num_modules: modules N in the pool.
        top_k: places K.
        normalize: make the K weights sum to 1.
        softmax: scores are ``softmax(logits)``; otherwise the logits themselves.
        straight_through: replace weights by their sign, gradients passing through.
        leave_when_skip_first: ``skip_rule: first``; where SKIP ranks first it takes all K places.
        reachable: slots this round may choose, boolean [slots], or for each token [B, 1 or T, slots]. Where they are
            fewer than K, SKIP with weight 0 takes the places left. ``None`` means all.
        ranking: what to rank by instead of the scores, [B, T, slots].
        noise: added to the logits for ranking only, [B, T, slots].
        bias: added to the scores for ranking only, [slots]; the weights are those of the scores without it.

    Returns:
        The record; gradients reach ``logits`` through ``scores``, ``weights`` and ``logits``.
    """
    logits = logits.float()  # (B, T, slots); routing is decided in float32 whatever the matrix precision
    allowed = logits if reachable is None else logits.masked_fill(~reachable, float("-inf"))
    if softmax:
        scores = allowed.softmax(dim=-1)
    else:
        scores = logits if reachable is None else logits.masked_fill(~reachable, 0.0)
    if ranking is None:
        ranking = scores
        if noise is not None:
            ranking = allowed.detach() + noise
            ranking = ranking.softmax(dim=-1) if softmax else ranking
    if bias is not None:
        ranking = ranking.detach() + bias
    if reachable is not None:
        # A reachable score may underflow to 0, which must still rank before an unreachable one.
        ranking = ranking.masked_fill(~reachable, float("-inf"))
    selected = ranking.topk(top_k, dim=-1).indices  # (B, T, K)
    weights = scores.gather(-1, selected)
    if normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    if reachable is not None:
        # A round with fewer slots than assignments, as with ``top_k: all`` and a schedule: SKIP holds the rest.
        selected = torch.where(reachable.expand_as(scores).gather(-1, selected), selected, num_modules)
    if straight_through:
        weights = _StraightThroughSign.apply(weights)
    if scores.shape[-1] > num_modules + 1:  # several slots mean SKIP: fold them into one
        skip_score = scores[..., num_modules:].sum(dim=-1, keepdim=True)
        scores = torch.cat([scores[..., :num_modules], skip_score], dim=-1)  # (B, T, N+1)
        selected = selected.clamp(max=num_modules)
    if leave_when_skip_first:
        selected = torch.where(selected[..., :1] == num_modules, num_modules, selected)
    return Routing(scores, selected, weights, allowed)


def leave(routing: Routing, exited: Tensor) -> Routing:
    """Make SKIP the only choice of some tokens (``absorbing_skip``); nothing of them depends on the router then.

    Args:
        routing: the router's decisions.
        exited: tokens that have exited the stage, boolean [B, T].

    Returns:
        The record, for ``exited`` with probability 1 for SKIP, SKIP in all K assignments, and the first with all
        weight.
    """

    def instead(tensor: Tensor, columns: slice, value: float, rest: float) -> Tensor:
        filled = torch.full_like(tensor[:1, :1], rest)  # (1, 1, columns)
        filled[..., columns] = value
        return torch.where(exited[..., None], filled, tensor)

    skip = slice(routing.num_modules, None)
    return Routing(
        scores=instead(routing.scores, skip, 1.0, 0.0),
        selected=routing.selected.masked_fill(exited[..., None], routing.num_modules),
        weights=instead(routing.weights, slice(0, 1), 1.0, 0.0),
        logits=instead(routing.logits, skip, 0.0, float("-inf")),
    )
