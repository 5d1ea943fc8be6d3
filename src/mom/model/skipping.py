"""How SKIP learns: from trials, since a token that skips runs no module that could tell what it would have done.

In training, a small share of the steps are trials (``skip_trials``). The token's best module is computed, and with even
odds its output is added or left out. Either way the gradient by that factor, 1 or 0, says how the loss would change.
The slope at 1 alone would not do: training settles the scale of a module where that slope is 0 on average. The mean
of the slopes at 0 and at 1 is the change between the two, exactly for a quadratic function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def run_probability(logits: Tensor, reachable: Tensor | None, num_modules: int) -> Tensor:
    """Return the probability of running a module, 1 - p_SKIP, [B, T, 1], from logits, [B, T, slots]."""
    if reachable is not None:
        logits = logits.masked_fill(~reachable, float("-inf"))
    return logits.softmax(dim=-1)[..., :num_modules].sum(dim=-1, keepdim=True)


def try_skip(run: Tensor, trials: Tensor, price: float) -> Tensor:
    """Return the factor of each token's output: 0 for about half of the trials, else 1, [B, T, 1].

    Its gradient trains the probability of running a module where a token is on trial.

    Args:
        run: probability of running a module, [B, T, 1].
        trials: the tokens on trial, boolean [B, T, 1].
        price: price of running a module, as a fraction of the mean absolute effect of the batch's trials.
    """
    runs = torch.rand_like(run) < 0.5
    return _Trial.apply(run, trials, ~trials | runs, price)


class _Trial(torch.autograd.Function):
    """Factors of outputs, and the gradient of what they do to the loss for the probability of running a module.

    Effects are measured in units of their mean and clamped to 1, or the few tokens on which much depends would drown
    the rest. So the gradient follows the scale of the loss, and the price has no unit.
    """

    @staticmethod
    def forward(ctx: Any, run: Tensor, trials: Tensor, keep: Tensor, price: float) -> Tensor:
        ctx.save_for_backward(trials)
        ctx.price = price
        return keep.to(run.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (trials,) = ctx.saved_tensors
        effect = grad * trials  # (B, T, 1)
        unit = effect.abs().sum() / trials.sum().clamp_min(1)
        relative = (effect / unit.clamp_min(torch.finfo(unit.dtype).tiny)).clamp(-1, 1)
        return (relative + ctx.price) * unit * trials, None, None, None
