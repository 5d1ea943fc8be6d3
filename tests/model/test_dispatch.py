"""All implementations of the grouped linear map, compared with its definition row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mom.model import dispatch as dispatch_module
from mom.model.dispatch import even_groups, grouped_linear, sort_by_group
from tests.helpers.models import small_model


def naive(x, weight, bias, groups, *, gather, scatter, row_weight, row, gelu):
    """The definition, for each (token, choice); ``row`` is its position in dispatch order."""
    num_tokens, num_choices = groups.shape
    rows = [torch.zeros(weight.shape[-1], dtype=x.dtype) for _ in range(groups.numel())]
    for token in range(num_tokens):
        for choice in range(num_choices):
            group, at = int(groups[token, choice]), int(row[token, choice])
            if group < weight.shape[0]:
                taken = x[token] if gather else x[at]
                taken = F.gelu(taken, approximate="tanh") if gelu else taken
                y = taken @ weight[group] + bias[group]
                rows[at] = y if row_weight is None else row_weight[at] * y
    if not scatter:
        return torch.stack(rows)
    return torch.stack([sum(rows[int(at)] for at in row[token]) for token in range(num_tokens)])


@st.composite
def routings(draw):
    """Return K distinct groups per token; the number of groups means SKIP."""
    num_groups = draw(st.integers(1, 5))
    num_choices = draw(st.integers(1, num_groups + 1))
    num_tokens = draw(st.integers(1, 9))
    token = st.permutations(range(num_groups + 1)).map(lambda order: order[:num_choices])
    return num_groups, torch.tensor(draw(st.lists(token, min_size=num_tokens, max_size=num_tokens)))


@settings(max_examples=60, deadline=None)
@given(
    routing=routings(),
    gather=st.booleans(),
    scatter=st.booleans(),
    weighted=st.booleans(),
    gelu=st.booleans(),
    seed=st.integers(0, 9),
)
@pytest.mark.parametrize("implementation", ["loop", "grouped_mm"])
def test_equals_its_definition_in_value_and_every_gradient(
    implementation, routing, gather, scatter, weighted, gelu, seed
):
    num_groups, groups = routing
    generator = torch.Generator().manual_seed(seed)
    dispatch = sort_by_group(groups, num_groups)
    num_rows = groups.numel()

    def leaf(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    x = leaf(groups.shape[0] if gather else num_rows, 8)
    weight, bias = leaf(num_groups, 8, 12), leaf(num_groups, 12)
    row_weight = leaf(num_rows) if weighted else None
    leaves = [x, weight, bias] + ([row_weight] if weighted else [])

    options = {"gather": gather, "scatter": scatter, "row_weight": row_weight, "gelu": gelu}
    expected = naive(x, weight, bias, groups, row=dispatch.row, **options)
    grad = torch.randn(expected.shape, generator=generator)
    # If every row is SKIP, the output depends on nothing and has no gradient function.
    expected = expected + 0 * sum(leaf.sum() for leaf in leaves)
    expected_grads = torch.autograd.grad(expected, leaves, grad)

    if implementation == "loop":
        out = grouped_linear(x, weight, bias, dispatch, **options)
        grads = torch.autograd.grad(out, leaves, grad)
    else:
        arguments = (
            x,
            weight,
            bias,
            row_weight,
            dispatch.token,
            dispatch.ends,
            dispatch.row,
            gather,
            scatter,
            gelu,
        )
        with torch.no_grad():
            out = dispatch_module.forward_by_grouped_mm(*arguments)
            grads = dispatch_module.backward_by_grouped_mm(grad, *arguments)[: len(leaves)]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(routing=routings())
def test_sorting_keeps_every_choice_once_and_puts_skip_last(routing):
    num_groups, groups = routing
    dispatch = sort_by_group(groups, num_groups)
    flat = groups.flatten()
    ordered = flat[dispatch.position]
    assert ordered.tolist() == sorted(flat.tolist())
    assert dispatch.ends.tolist() == [int((flat <= group).sum()) for group in range(num_groups)]
    assert torch.equal(dispatch.position[dispatch.row.flatten()], torch.arange(flat.numel()))
    assert torch.equal(dispatch.token, dispatch.position // groups.shape[1])


def test_memory_of_skip_rows_never_reaches_a_result():
    groups = torch.full((64, 2), 3)
    dispatch = sort_by_group(groups, 3)
    torch.full((64 * 2, 32), float("nan"))  # a new buffer may contain NaN
    x = torch.randn(64, 16, requires_grad=True)
    weight, bias = torch.randn(3, 16, 32, requires_grad=True), torch.randn(3, 32, requires_grad=True)
    out = grouped_linear(x, weight, bias, dispatch, gather=True, scatter=True, row_weight=torch.ones(128))
    out.sum().backward()
    assert float(out.abs().max()) == 0
    assert all(float(leaf.grad.abs().max()) == 0 for leaf in (x, weight, bias))


def test_groups_are_even_on_tensors_without_data():
    with FakeTensorMode():
        model = small_model(top_k=1, router="linear").train()
        ids = torch.zeros(2, 8, dtype=torch.int64)
        with even_groups(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=ids, output_logits=False).loss.backward()
        assert all(part.grad is not None for name, part in model.named_parameters() if "pool" in name)
        assert counter.get_total_flops() > 0
        with pytest.raises(DataDependentOutputException):  # the numbers are read again
            model(input_ids=ids, labels=ids)


def test_operator_is_well_formed():
    groups = torch.tensor([[0, 2], [1, 0], [2, 1]])
    dispatch = sort_by_group(groups, 2)
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    bias, row_weight = torch.randn(2, 8, requires_grad=True), torch.rand(6, requires_grad=True)
    arguments = (x, weight, bias, row_weight, dispatch.token, dispatch.ends, dispatch.row, True, True, True)
    torch.library.opcheck(torch.ops.mom.grouped_linear.default, arguments)


class SumsInFloat32(TorchFunctionMode):
    """What autocast on CUDA does to sums that are not given a dtype, and autocast on the CPU does not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.sum and "dtype" not in (kwargs or {}):
            args = args[0].float(), *args[1:]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_choices", [1, 2])
def test_autocast_on_a_gpu_leaves_the_output_in_bfloat16(num_choices):
    with torch.device("meta"), SumsInFloat32():  # on the CPU, other operations sum
        dispatch = sort_by_group(torch.zeros(6, num_choices, dtype=torch.long), 4)
        how = dispatch.token, dispatch.ends, dispatch.row, True, True, False
        x, weight, bias = (torch.ones(shape).bfloat16() for shape in ((6, 8), (4, 8, 16), (4, 16)))
        y = dispatch_module.forward_by_grouped_mm(x, weight, bias, torch.ones(6 * num_choices), *how)
    assert y.dtype == torch.bfloat16
