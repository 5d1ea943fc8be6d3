"""Dispatch: a grouped linear map with gather and weighted scatter, which all routed computation uses.

For every row m of a dispatch, with group g(m)::

    out[target[m]] += weight[m] * (act(x[source[m]]) @ W[g(m)] + b[g(m)])

Rows are sorted by group and the groups' ends are given as offsets, so shapes do not depend on the routing and
nothing is sent to the host on a GPU. Rows after the last end (SKIP) are not computed. On the CPU, the map loops over
groups; elsewhere it calls `torch.nn.functional.grouped_mm`. Compiled or on a GPU it is a custom operator, so that
`torch.compile` sees a single node with static shapes; otherwise it is an autograd function, which costs less per call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mom.model.weight_gradients import GradientSum, gradient_sum

FEW_NUMBERS = 2**18
"""Numbers of a step's rows up to which time counts more than memory."""

_evenly = ContextVar("evenly", default=False)


@contextmanager
def even_groups() -> Iterator[None]:
    """Let every group have the same number of rows, without SKIP, instead of reading the numbers from tensors.

    With this, the loop over groups runs on tensors without data, such as PyTorch's fake tensors.
    """
    token = _evenly.set(True)
    try:
        yield
    finally:
        _evenly.reset(token)


def reads_no_values() -> bool:
    """Return whether tensors may have no values that could be read (:func:`even_groups`)."""
    return _evenly.get()


class Dispatch(NamedTuple):
    """Rows of computation sorted by group.

    Attributes:
        token: the token of each row, int64 [M]; M = tokens x K.
        ends: the end of each group's rows, int32 [G]; rows from ``ends[-1]`` on are SKIP.
        position: each row's position in the flattened [tokens, K] choices, int64 [M].
        row: the inverse of ``position``: the row of each (token, choice), int64 [tokens, K].
        group: each row's group, int64 [M]; G or more is SKIP.
    """

    token: Tensor
    ends: Tensor
    position: Tensor
    row: Tensor
    group: Tensor


def sort_by_group(groups: Tensor, num_groups: int) -> Dispatch:
    """Sort all (token, choice) pairs by their group, [tokens, K]; ``num_groups`` or more is SKIP and comes last."""
    flat = groups.flatten()  # (M,)
    ordered, position = flat.sort(stable=True)
    bounds = torch.arange(num_groups, device=flat.device, dtype=ordered.dtype)
    ends = torch.searchsorted(ordered, bounds, right=True).to(torch.int32)  # (G,)
    row = torch.empty_like(position).scatter_(
        0, position, torch.arange(position.numel(), device=position.device)
    )
    token = position if groups.shape[-1] == 1 else position // groups.shape[-1]
    return Dispatch(token, ends, position, row.view_as(groups), ordered)


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dispatch: Dispatch,
    *,
    gather: bool,
    scatter: bool,
    row_weight: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Compute the grouped linear map that the module's docstring defines.

    Args:
        x: [tokens, D_in] if ``gather``, else rows in dispatch order [M, D_in].
        weight: [G, D_in, D_out].
        bias: [G, D_out].
        dispatch: rows sorted by group.
        gather: take row m from ``x[dispatch.token[m]]``.
        scatter: add row m to ``out[dispatch.token[m]]``; tokens without a row get 0.
        row_weight: [M] in dispatch order; ``None`` means 1.
        gelu: ``act`` is tanh-GELU, else the identity. The backward pass recomputes it.

    Returns:
        [tokens, D_out] if ``scatter``, else [M, D_out] in dispatch order, where SKIP rows are 0.
    """
    how = dispatch.token, dispatch.ends, dispatch.row, gather, scatter, gelu
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Without the operator, whose overhead counts at small widths.
        return _GroupedLinear.apply(x, weight, bias, row_weight, how)
    return _grouped_linear(x, weight, bias, row_weight, *how)


def forward_by_grouped_mm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_weight: Tensor | None,
    token: Tensor,
    ends: Tensor,
    row: Tensor,
    gather: bool,
    scatter: bool,
    gelu: bool,
) -> Tensor:
    """Compute the map by grouped matmuls, on any device; see :func:`grouped_linear`."""
    rows = _activated(x.index_select(0, token) if gather else x, gelu)  # (M, D_in)
    y = F.grouped_mm(rows, weight, offs=ends)  # (M, D_out); SKIP rows are left uninitialized
    group = _group_of_row(ends, token.numel())
    y = y + bias.index_select(0, group.clamp(max=bias.shape[0] - 1))
    if row_weight is not None:
        y = y * row_weight.to(y.dtype)[:, None]
    y = torch.where((group < bias.shape[0])[:, None], y, 0)
    return sum_choices(y, row) if scatter else y


def forward_by_loop(*arguments: Any) -> Tensor:
    """Compute the map by a loop over groups, for the CPU."""
    x, weight, bias, row_weight, token, ends, row, gather, scatter, gelu = arguments
    y = x.new_empty(token.numel(), weight.shape[-1])  # (M, D_out)
    sizes = _sizes(ends, token.numel())
    parts = (token if gather else x).split_with_sizes(sizes)
    if gather and y.numel() <= FEW_NUMBERS:  # a gather for all groups takes less time, and more memory
        parts, gather = x.index_select(0, token).split_with_sizes(sizes), False
    for part, weight_g, bias_g, y_g in zip(
        parts, weight.unbind(), bias.unbind(), y.split_with_sizes(sizes), strict=False
    ):
        rows = _activated(x.index_select(0, part) if gather else part, gelu)  # (M_g, D_in)
        torch.addmm(bias_g, rows, weight_g, out=y_g)
    _zero_skip(y, sizes)
    if row_weight is not None:
        y *= row_weight.to(y.dtype)[:, None]
    return sum_choices(y, row) if scatter else y


_grouped_linear = torch.library.custom_op("mom::grouped_linear", forward_by_grouped_mm, mutates_args=())
_grouped_linear.register_kernel("cpu")(forward_by_loop)


@_grouped_linear.register_fake
def _grouped_linear_fake(*arguments: Any) -> Tensor:
    x, weight, _, _, token, _, row, _, scatter, _ = arguments
    return x.new_empty(row.shape[0] if scatter else token.shape[0], weight.shape[-1])


def backward_by_grouped_mm(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_weight: Tensor | None,
    token: Tensor,
    ends: Tensor,
    row: Tensor,
    gather: bool,
    scatter: bool,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of x, weight, bias, and row_weight (empty without one), on any device."""
    num_groups = weight.shape[0]
    group = _group_of_row(ends, token.numel())
    taken = (group < num_groups)[:, None]  # (M, 1)
    # A SKIP row's memory is uninitialized; its gradient must be exactly 0 in every product below.
    grad_rows = torch.where(taken, grad.index_select(0, token) if scatter else grad, 0)  # (M, D_out)
    before = x.index_select(0, token) if gather else x  # (M, D_in)
    rows = _activated(before, gelu)
    grad_x_rows = F.grouped_mm(grad_rows, weight.transpose(1, 2), offs=ends)
    grad_x_rows = torch.where(taken, grad_x_rows, 0)  # (M, D_in)
    grad_row_weight = x.new_empty(0)
    if row_weight is not None:
        bias_rows = bias.index_select(0, group.clamp(max=num_groups - 1))
        grad_row_weight = (rows * grad_x_rows).sum(-1) + (bias_rows * grad_rows).sum(-1)  # (M,)
        grad_row_weight = grad_row_weight.to(row_weight.dtype)
        scale = row_weight.to(x.dtype)[:, None]
        grad_rows, grad_x_rows = grad_rows * scale, grad_x_rows * scale
    grad_weight = F.grouped_mm(rows.t(), grad_rows, offs=ends)  # (G, D_in, D_out)
    member = F.one_hot(group, num_groups + 1)[:, :num_groups].to(grad_rows.dtype)  # (M, G)
    grad_bias = member.t() @ grad_rows  # (G, D_out)
    if gelu:
        grad_x_rows = torch.where(taken, _gelu_backward(grad_x_rows, before), 0)
    grad_x = sum_choices(grad_x_rows, row) if gather else grad_x_rows
    return grad_x, grad_weight, grad_bias, grad_row_weight


def backward_by_loop(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients by a loop over groups, for the CPU."""
    _, _, weight, bias, *_ = arguments
    gradients = GradientSum(weight, bias)
    grad_x, grad_row_weight = _backward_by_loop(gradients, *arguments)
    sums = gradients.take()
    assert sums is not None
    return grad_x, *sums, grad_row_weight


def _backward_by_loop(gradients: GradientSum | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and row_weight, and add a round to those of weight and bias."""
    grad, x, weight, bias, row_weight, token, ends, row, gather, scatter, gelu = arguments
    before = x.index_select(0, token) if gather else x  # (M, D_in)
    rows = _activated(before, gelu)
    grad_rows = grad.index_select(0, token) if scatter else grad  # (M, D_out)
    grad_x_rows = torch.empty_like(rows)  # (M, D_in)
    sizes = _sizes(ends, token.numel())
    for grad_g, weight_g, grad_x_g in zip(
        grad_rows.split_with_sizes(sizes),
        weight.mT.unbind(),
        grad_x_rows.split_with_sizes(sizes),
        strict=False,
    ):
        torch.mm(grad_g, weight_g, out=grad_x_g)
    _zero_skip(grad_x_rows, sizes)
    grad_row_weight = x.new_empty(0)
    if row_weight is not None:
        products = torch.linalg.vecdot(rows, grad_x_rows)  # (M,)
        for products_g, grad_g, bias_g in zip(
            products.split_with_sizes(sizes),
            grad_rows.split_with_sizes(sizes),
            bias.unbind(),
            strict=False,
        ):
            products_g.addmv_(grad_g, bias_g)
        grad_row_weight = products.to(row_weight.dtype)
        scale = row_weight.to(x.dtype)[:, None]
        grad_rows, grad_x_rows = grad_rows * scale, grad_x_rows.mul_(scale)
    if gradients is not None:
        gradients.add(rows, grad_rows, sizes)
    if gelu:
        grad_x_rows = _gelu_backward(grad_x_rows, before)
    return sum_choices(grad_x_rows, row) if gather else grad_x_rows, grad_row_weight


_grouped_linear_backward = torch.library.custom_op(
    "mom::grouped_linear_backward", backward_by_grouped_mm, mutates_args=()
)
_grouped_linear_backward.register_kernel("cpu")(backward_by_loop)


@_grouped_linear_backward.register_fake
def _grouped_linear_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    _, x, weight, bias, row_weight, *_ = arguments
    grad_row_weight = x.new_empty(0) if row_weight is None else torch.empty_like(row_weight)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias), grad_row_weight


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.gather, ctx.scatter, ctx.gelu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read only once, because checkpointing recomputes them at each read
    flags = ctx.gather, ctx.scatter, ctx.gelu
    *grads, grad_row_weight = _grouped_linear_backward(grad.contiguous(), *saved, *flags)
    return *grads, None if saved[3] is None else grad_row_weight, *(None,) * 6


_grouped_linear.register_autograd(_differentiate, setup_context=_save_for_backward)


class _GroupedLinear(torch.autograd.Function):
    """The loop over groups with its gradients, for the CPU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.how = inputs
        ctx.save_for_backward(*tensors)
        ctx.gradients = gradient_sum(tensors[1])
        return forward_by_loop(*tensors, *ctx.how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, weight, bias, row_weight = saved = ctx.saved_tensors  # read only once, as above
        gradients = ctx.gradients
        own = GradientSum(weight, bias) if gradients is None and any(ctx.needs_input_grad[1:3]) else None
        grad_x, grad_row_weight = _backward_by_loop(gradients or own, grad.contiguous(), *saved, *ctx.how)
        grad_weight, grad_bias = (None if own is None else own.take()) or (None, None)
        return grad_x, grad_weight, grad_bias, None if row_weight is None else grad_row_weight, None


@register_flop_formula(torch.ops.mom.grouped_linear, get_raw=True)
def _flops(*arguments: Any, **_: Any) -> int:
    """Count the FLOPs of all rows but SKIP, for PyTorch's FLOP counter."""
    weight, ends = arguments[1], arguments[5]
    return 2 * int(ends[-1]) * weight.shape[1] * weight.shape[2]


@register_flop_formula(torch.ops.mom.grouped_linear_backward, get_raw=True)
def _flops_backward(*arguments: Any, **_: Any) -> int:
    """Count two matmuls for each matmul of the forward pass."""
    return 2 * _flops(*arguments[1:])


def _activated(x: Tensor, gelu: bool) -> Tensor:
    return F.gelu(x, approximate="tanh") if gelu else x


def _gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


def _sizes(ends: Tensor, num_rows: int) -> list[int]:
    """Return the number of rows of each group and, as the last item, of SKIP; for the CPU only."""
    if _evenly.get():
        groups = len(ends)
        return [num_rows // groups + (group < num_rows % groups) for group in range(groups)] + [0]
    stops = [0, *ends.tolist(), num_rows]
    return [stop - start for start, stop in pairwise(stops)]


def _zero_skip(rows: Tensor, sizes: list[int]) -> None:
    """Set the rows of SKIP, which no group computes, to 0, in place."""
    if sizes[-1]:
        rows[-sizes[-1] :] = 0


def _group_of_row(ends: Tensor, num_rows: int) -> Tensor:
    """Return the group of each row, G for SKIP, int64 [M]."""
    return torch.searchsorted(ends, torch.arange(num_rows, device=ends.device, dtype=ends.dtype), right=True)


def sum_choices(y: Tensor, row: Tensor) -> Tensor:
    """Sum the K rows of each token, [M, D] → [tokens, D], by a gather, which fixes the order of summation."""
    num_tokens, num_choices = row.shape
    if num_choices == 1:
        return y.index_select(0, row[:, 0])
    if y.device.type == "cpu":
        bags = torch.arange(0, row.numel(), num_choices)
        return torch.embedding_bag(y, row.flatten(), bags, mode=0)[0]  # mode 0 sums
    # The dtype keeps autocast on a GPU from returning float32.
    return y.index_select(0, row.flatten()).view(num_tokens, num_choices, -1).sum(1, dtype=y.dtype)
