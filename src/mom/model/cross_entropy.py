"""The cross-entropy of a language model's head, computed in chunks of tokens."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mom.model.pools.pool import product_dtype

# `torch.nn.functional.linear_cross_entropy` rounds the loss of bfloat16 inputs to bfloat16 (10.94 instead of 10.967),
# too coarse for a learning curve; the function below sums in float32.

CHUNK_TOKENS = 256
"""Tokens whose logits are in memory at a time; larger chunks were no faster (docs/performance.md)."""

GPU_CHUNK_TOKENS = 1024
"""The same on a GPU, where the gradient of the head is read and written once per chunk."""

GPU_VOCAB_MULTIPLE = 64
"""On a GPU, matmuls are several times slower if the vocabulary is not a multiple of 8 entries of 16 bits; see NVIDIA's
"Matrix Multiplication Background User's Guide"."""


def head_cross_entropy(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Return the mean cross-entropy of a head's logits without materializing all of them at once.

    A plain linear head is not called: its gradient is computed with its loss (:func:`chunked_cross_entropy`). Any other
    head, such as one with an adapter, hooks, or quantized weights, is called once per chunk, and again in the backward
    pass.

    Args:
        head: maps [1, m, D] to logits, [1, m, V].
        hidden: [M, D].
        labels: [M], int64; ``ignore_index`` is not counted.
        num_items: divide the sum over labels by this number instead of the number of labels that count.

    Returns:
        A scalar in nats; NaN if no label counts, as in PyTorch, but 0 with ``num_items``.
    """
    if _is_plain_linear(head):
        hidden = hidden.to(product_dtype(hidden))
        return chunked_cross_entropy(hidden, head.weight, labels, ignore_index, num_items)

    def chunk_nats(rows: Tensor, target: Tensor) -> Tensor:
        logits = head(rows[None])[0]  # (m, V)
        logits = logits.to(_sum_dtype(logits))
        return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")

    chunks = zip(hidden.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)
    nats = [checkpoint(chunk_nats, rows, target, use_reentrant=False) for rows, target in chunks]
    count = (labels != ignore_index).sum() if num_items is None else as_count(num_items, hidden.device)
    return torch.stack(nats).sum() / count


def _is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether calling a head only multiplies by its weight.

    Adapters and parametrizations change the class of the head, quantization that of the head or the weight. A fake
    weight stands for a plain one.
    """
    return (
        type(head) is nn.Linear
        and type(head.weight) in (nn.Parameter, Tensor, FakeTensor)
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not (head._backward_hooks or head._backward_pre_hooks)
        and head.bias is None
    )


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums over a tensor: at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(hidden: Tensor) -> tuple[int, int]:
    """Return the tokens of a chunk, and of which number the head's matmuls make the vocabulary a multiple."""
    return (GPU_CHUNK_TOKENS, GPU_VOCAB_MULTIPLE) if hidden.is_cuda else (CHUNK_TOKENS, 1)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, while the chunk's logits are in memory.

    They are those of the sum over tokens. Only the backward pass divides by their number and multiplies by the incoming
    gradient, in float32: float16 can hold neither a loss scale of 65,536 nor an unscaled gradient per token.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        ignore_index: int,
        num_items: Tensor | None,
        with_grad: bool,
    ) -> Tensor:
        counted = labels != ignore_index  # (M,)
        divisor = counted.sum() if num_items is None else num_items
        chunk, multiple = _blocks(hidden)
        vocab_size = weight.shape[0]
        matrix = weight.to(hidden.dtype)
        if vocab_size % multiple:
            matrix = F.pad(
                matrix, (0, 0, 0, -vocab_size % multiple)
            )  # (V', D), V' from V on: never predicted
        grad_hidden = torch.empty_like(hidden) if with_grad and hidden.requires_grad else None
        grad_weight = (
            torch.zeros_like(matrix, dtype=_sum_dtype(weight)) if with_grad and weight.requires_grad else None
        )
        # Allocate once: on a CPU, new memory for every chunk costs as much as the arithmetic.
        size = min(chunk, hidden.shape[0])
        logits_buffer = hidden.new_empty(size, matrix.shape[0])
        sum_buffer = torch.empty_like(logits_buffer, dtype=_sum_dtype(hidden))
        total = sum_buffer.new_zeros(())
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, min(start + chunk, hidden.shape[0]))
            logits = logits_buffer[: rows.stop - start]  # (m, V')
            log_probabilities = sum_buffer[: rows.stop - start]
            target = torch.where(counted[rows], labels[rows], 0)[:, None]  # (m, 1)
            torch.mm(hidden[rows], matrix.t(), out=logits)
            logits[:, vocab_size:] = float("-inf")
            torch.log_softmax(logits, -1, dtype=sum_buffer.dtype, out=log_probabilities)
            total -= (log_probabilities.gather(1, target) * counted[rows, None]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            error = log_probabilities.exp_()
            error.scatter_add_(1, target, torch.full_like(target, -1, dtype=error.dtype))
            error = logits.copy_(error)  # (m, V'): probabilities minus the label
            if grad_hidden is not None:
                torch.mm(error, matrix, out=grad_hidden[rows])
            if grad_weight is not None:
                inputs = hidden[rows] * counted[rows, None]
                if grad_weight.dtype == error.dtype:
                    grad_weight.addmm_(error.t(), inputs)
                else:
                    grad_weight += error.t() @ inputs
        grad_weight = None if grad_weight is None else grad_weight[:vocab_size]
        ctx.save_for_backward(grad_hidden, grad_weight, counted, divisor)
        ctx.weight_dtype = weight.dtype
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, counted, divisor = ctx.saved_tensors
        # A fraction of an item is one of several devices' share of it.
        scale = grad / torch.where(divisor > 0, divisor, 1)
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * (scale * counted)[:, None]).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Return the mean cross-entropy of ``hidden @ weight.T`` without materializing all logits at once.

    Args:
        hidden: [M, D]; matmuls run in its dtype, softmax and sums in at least float32.
        weight: the output head, [V, D].
        labels: [M], int64; ``ignore_index`` is not counted.
        num_items: as for :func:`head_cross_entropy`.

    Returns:
        A scalar in nats, float32 (float64 from float64); NaN if no label counts, as in PyTorch.
    """
    count = None if num_items is None else as_count(num_items, hidden.device)
    # Within the function, autograd is always off.
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, ignore_index, count, torch.is_grad_enabled())


def as_count(number: Tensor | int, device: torch.device) -> Tensor:
    """Return a number as a scalar on a device; `torch.nn.DataParallel` passes one in a tensor of any shape."""
    return torch.as_tensor(number, device=device).flatten()[0]
