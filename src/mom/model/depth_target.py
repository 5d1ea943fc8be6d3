"""A penalty on depth: the average effective depth that a user asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mom.model.configuration import MoMConfig
from mom.model.routing import RoundRouting


def depth_loss(config: MoMConfig, routing: Sequence[RoundRouting], mask: Tensor | None = None) -> Tensor:
    """Square of the distance between effective depth and ``depth_target``, in units of the rounds.

    ``((d - depth_target) / (num_stages · num_rounds))²``, where d is the mean effective depth (DESIGN §3) of the
    tokens given. Whether a token took a module in a step is no smooth function of the scores, so its gradient is
    that of the probability that it does, 1 - p_SKIP (a straight-through estimate: Bengio et al. 2013,
    arXiv 1308.3432). So the value is about the depth that is measured, and the gradient reaches the routers.

    Args:
        config: the model's configuration, with a ``depth_target``.
        routing: every round of every stage.
        mask: real tokens, [B, T]; ``None`` means all.

    Returns:
        A scalar; 0 for a model without routing.
    """
    assert config.depth_target is not None
    if not routing:
        return torch.zeros(())
    sizes = (config.num_attention_modules, config.num_ffn_modules)
    steps = [(step, size) for decided in routing for step, size in zip(decided, sizes, strict=True)]
    hard = torch.stack([(step.selected < size).any(-1).float() for step, size in steps])  # (2 · rounds, B, T)
    # The softmax's first N are modules, whatever the scores are and however many slots mean SKIP.
    soft = torch.stack([step.logits.softmax(-1)[..., :size].sum(-1) for step, size in steps])
    took = hard + soft - soft.detach()
    real = torch.ones_like(took[0]) if mask is None else mask.to(took.dtype)
    share = (took * real).sum() / (real.sum() * len(steps)).clamp_min(1.0)
    rounds = len(routing)
    return (share + (config.fixed_depth - config.depth_target) / rounds).square()
