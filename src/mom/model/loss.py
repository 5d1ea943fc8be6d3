"""The language-model loss without its logits: head and cross-entropy in chunks of tokens.

`torch.nn.functional.linear_cross_entropy` does the same in float32, but for bfloat16 inputs it returns the loss
rounded to bfloat16 (10.94 for 10.967), which no curve can be drawn from; so it stands here, in float32 sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_TOKENS = 256
"""Tokens whose logits stand in memory at a time; larger ones were no faster (docs/performance.md)."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward, chunk by chunk, while the chunk's logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        counted = labels != ignore_index  # (M,)
        num_counted = counted.sum()
        needs_grad = hidden.requires_grad or weight.requires_grad
        share = (counted / num_counted.clamp_min(1)).to(hidden.dtype)[:, None]  # (M, 1), 0 where not counted
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        # Summed in the parameter's own precision.
        grad_weight = torch.zeros_like(weight) if needs_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # Made once: fresh memory for every chunk costs the CPU as much as the arithmetic on it.
        size = min(CHUNK_TOKENS, hidden.shape[0])
        logits_buffer = hidden.new_empty(size, weight.shape[0])
        float_buffer = torch.empty_like(logits_buffer, dtype=torch.float32)
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            rows = slice(start, min(start + CHUNK_TOKENS, hidden.shape[0]))
            logits = logits_buffer[: rows.stop - start]  # (m, V)
            log_probabilities = float_buffer[: rows.stop - start]
            target = torch.where(counted[rows], labels[rows], 0)[:, None]  # (m, 1)
            torch.mm(hidden[rows], matrix.t(), out=logits)
            torch.log_softmax(logits, -1, dtype=torch.float32, out=log_probabilities)
            total -= (log_probabilities.gather(1, target) * counted[rows, None]).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            error = log_probabilities.exp_()
            error.scatter_add_(1, target, torch.full_like(target, -1, dtype=error.dtype))
            error = logits.copy_(error)  # (m, V): probabilities minus the label
            torch.mm(error, matrix, out=grad_hidden[rows]).mul_(share[rows])
            if grad_weight.dtype == error.dtype:
                grad_weight.addmm_(error.t(), hidden[rows] * share[rows])
            else:
                grad_weight += error.t() @ (hidden[rows] * share[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / num_counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of ``hidden @ weight.T`` against ``labels``, logits never standing in memory whole.

    Args:
        hidden: [M, D]; the products run in its dtype, softmax and sums in float32.
        weight: the output head, [V, D].
        labels: [M], int64.
        ignore_index: label that is not counted.

    Returns:
        A scalar in nats, float32; NaN if no label counts, as in PyTorch.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, ignore_index)
