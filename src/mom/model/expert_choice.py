"""Expert choice: in training, modules choose tokens (mixture-of-depths, Raposo et al. 2024, arXiv 2404.02258).

Each module of a round takes the ``capacity`` share of a sequence's tokens that prefer it most to SKIP. Whether a token
is among them depends on later tokens, which do not exist yet when text is generated. In evaluation and generation a
causal rule therefore replaces it: a module runs for the tokens that prefer it to SKIP. :func:`capacity_loss` trains
routers to make the two rules agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mom.model.options import ModelOptions
from mom.model.routing import RoundRouting


def log_odds(logits: Tensor, num_modules: int) -> Tensor:
    """Return the log-odds of each module against SKIP, [B, T, slots] → [B, T, N]; positive where it is preferred."""
    return logits[..., :num_modules] - logits[..., num_modules:].logsumexp(dim=-1, keepdim=True)


def top_share(odds: Tensor, capacity: float, candidates: Tensor | None = None) -> Tensor:
    """Return the tokens that each module takes in training, boolean [B, T, N].

    A module takes the best ``capacity * n`` of a sequence's n candidates, rounded, but at least one. Of equal tokens,
    the first are taken.

    Args:
        odds: log-odds of each module, [B, T, N]; modules with -inf cannot take the token.
        capacity: share of the tokens, in (0, 1].
        candidates: tokens that can be taken, boolean [B, T]; padding and tokens that exited cannot. All by default.
    """
    open_tokens = odds > float("-inf")  # (B, T, N)
    if candidates is not None:
        open_tokens = open_tokens & candidates[..., None]
    num_taken = (capacity * open_tokens.sum(dim=1, keepdim=True)).round().clamp_min(1)  # (B, 1, N)
    ranked = odds.masked_fill(~open_tokens, float("-inf")).argsort(dim=1, descending=True, stable=True)
    place = ranked.argsort(dim=1)  # (B, T, N)
    return open_tokens & (place < num_taken)


def capacity_loss(
    config: ModelOptions, routing: Sequence[RoundRouting], mask: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of predicting which tokens modules take (Raposo et al. 2024, section 3.5).

    The prediction is the probability of a module against SKIP, ``sigmoid(log_odds)``; the causal rule runs a module
    where it is above one half. The mean is over the real tokens in a stage and the modules that a round can reach, of
    all pools with a capacity.

    Args:
        config: the model's options.
        routing: every round of every stage, stages in order.
        mask: real tokens, [B, T]; ``None`` means all.
    """
    candidates = None if mask is None else mask.bool()
    nats, counts = [], []
    for decisions in routing:
        for step, layout in zip(decisions, config.pools(), strict=True):
            if layout.capacity is None:
                continue
            odds = log_odds(step.logits, step.num_modules)  # (B, T, N)
            counted = odds.isfinite() if candidates is None else odds.isfinite() & candidates[..., None]
            target = top_share(odds.detach(), layout.capacity, candidates).to(odds.dtype)
            odds = odds.masked_fill(~counted, 0.0)
            terms = F.binary_cross_entropy_with_logits(odds, target, reduction="none")
            nats.append((terms * counted).sum())
            counts.append(counted.sum())
    return torch.stack(nats).sum() / torch.stack(counts).sum().clamp_min(1)
