"""Weight gradients of grouped linear maps, computed for several rounds at once.

All rounds of a stage use the same stacked weights. If each round returned a gradient of them, every round would write
and add up gradients as large as the pool, also those of modules that few tokens run. Instead, each round leaves the
rows that the gradient needs, and one product per module takes those of several rounds. Once the rows that wait take
more memory than the weights (and :data:`MIN_WAITING`), they are multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_WAITING = 2**20
"""Numbers that may wait for the product even if the weights are fewer."""


class GradientSum:
    """The gradients of stacked weights [G, D_in, D_out] and biases [G, D_out], summed over rounds."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self._limit = max(weight.numel(), MIN_WAITING)
        self._backward_pass: int | None = None
        self._reset()

    def _reset(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor, list[int]]] = []
        self._num_waiting = 0
        self._sums: tuple[Tensor, Tensor] | None = None

    def _drop_earlier(self) -> None:
        """Drop the rows of an earlier backward pass, which did not ask for these gradients."""
        current = torch._C._current_graph_task_id()
        if current != self._backward_pass:
            self._reset()
            self._backward_pass = current

    def add(self, rows: Tensor, grad_rows: Tensor, sizes: list[int]) -> None:
        """Add a round: inputs [M, D_in] and output gradients [M, D_out], sorted by group, with the groups' sizes."""
        self._drop_earlier()
        self._waiting.append((rows, grad_rows, sizes))
        self._num_waiting += rows.numel() + grad_rows.numel()
        if self._num_waiting > self._limit:
            self._sum_waiting()

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Return the gradients of weights and biases, and start anew; ``None`` if there were no rows."""
        self._drop_earlier()
        if self._waiting:
            self._sum_waiting()
        sums = self._sums
        self._reset()
        return sums

    def _sum_waiting(self) -> None:
        first = self._sums is None
        if self._sums is None:
            self._sums = torch.empty_like(self._weight), torch.empty_like(self._bias)
        by_group = zip(*(_split(*round_) for round_ in self._waiting), strict=True)
        for weight, bias, parts in zip(*(sums.unbind() for sums in self._sums), by_group, strict=False):
            rows, grads = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            torch.addmm(weight, rows.t(), grads, beta=0 if first else 1, out=weight)
            bias.copy_(grads.sum(0)) if first else bias.add_(grads.sum(0))
        self._waiting, self._num_waiting = [], 0


def _split(rows: Tensor, grad_rows: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(rows.split_with_sizes(sizes), grad_rows.split_with_sizes(sizes), strict=True))


class _Summed(torch.autograd.Function):
    """Weights and biases whose gradients come from a :class:`GradientSum`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.gradients = GradientSum(weight.detach(), bias.detach())
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        sums = ctx.gradients.take()
        if sums is None:
            return others
        return tuple(own if other is None else own + other for own, other in zip(sums, others, strict=True))


def with_summed_gradients(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of a grouped linear map that several rounds use; only the CPU's map needs it."""
    if weight.device.type != "cpu" or torch.compiler.is_compiling() or not weight.requires_grad:
        return weight, bias
    return _Summed.apply(weight, bias)


def gradient_sum(weight: Tensor) -> GradientSum | None:
    """Return where the gradients of weights are summed; ``None`` for weights without a sum over rounds."""
    return getattr(weight.grad_fn, "gradients", None)
