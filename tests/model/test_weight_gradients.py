"""Weight gradients of several rounds at once: the sums that autograd would make round by round."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mom.model import weight_gradients
from mom.model.dispatch import grouped_linear, sort_by_group
from mom.model.weight_gradients import gradient_sum, with_summed_gradients

NUM_GROUPS = 3


@pytest.fixture
def leaves():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(NUM_GROUPS, 4, 6, generator=generator).requires_grad_()
    return weight, torch.randn(NUM_GROUPS, 6, generator=generator).requires_grad_()


def rounds(seed: int, count: int = 5):
    """Draw the input and choices of each round; in the first, a group has no tokens, and SKIP is group 3."""
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.randint(NUM_GROUPS + 1, (7, 1), generator=generator) for _ in range(count)]
    groups[0][groups[0] == 1] = NUM_GROUPS
    return [(torch.randn(7, 4, generator=generator, requires_grad=True), group) for group in groups]


def run(weight, bias, given, wrap=lambda function, *arguments: function(*arguments)):
    """Sum a function of all rounds' outputs."""

    def one_round(x, group, weight, bias):
        dispatch = sort_by_group(group, NUM_GROUPS)
        row_weight = 1 + dispatch.position.float()
        return grouped_linear(
            x, weight, bias, dispatch, gather=True, scatter=True, row_weight=row_weight
        ).sin()

    return torch.stack([wrap(one_round, x, group, weight, bias) for x, group in given]).sum()


def gradients(leaves, loss):
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return [leaf.grad.clone() for leaf in leaves]


@pytest.mark.parametrize("limit", [0, 60, 2**20], ids=["each round", "two rounds", "all rounds"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_sum_equals_that_of_single_rounds(leaves, monkeypatch, limit, reentrant):
    given = rounds(1)
    expected = gradients(leaves, run(*leaves, given))
    monkeypatch.setattr(weight_gradients, "MIN_WAITING", limit)
    shared = with_summed_gradients(*leaves)
    if limit < 2**20:
        monkeypatch.setattr(gradient_sum(shared[0]), "_limit", limit)
    wrap = {} if reentrant is None else {"wrap": lambda *a: checkpoint(*a, use_reentrant=reentrant)}
    for ours, theirs in zip(gradients(leaves, run(*shared, given, **wrap)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_of_a_backward_pass_that_did_not_ask_for_them_are_dropped(leaves):
    given = rounds(2)
    expected = gradients(leaves, run(*leaves, given))
    loss = run(*with_summed_gradients(*leaves), given)
    torch.autograd.grad(loss, [x for x, _ in given], retain_graph=True)
    for ours, theirs in zip(gradients(leaves, loss), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_they_are_not_given_to_a_later_pass_either(leaves):
    given = rounds(2)
    shared = with_summed_gradients(*leaves)
    torch.autograd.grad(run(*shared, given), [x for x, _ in given])
    (found,) = torch.autograd.grad(shared[0].sum(), leaves[:1])
    assert torch.equal(found, torch.ones_like(found))


def test_another_use_of_the_weights_adds_its_gradient(leaves):
    given = rounds(3)
    expected = gradients(leaves, run(*leaves, given) + leaves[0].square().sum())
    shared = with_summed_gradients(*leaves)
    for ours, theirs in zip(
        gradients(leaves, run(*shared, given) + shared[0].square().sum()), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_pass_gives_the_same_again(leaves):
    loss = run(*with_summed_gradients(*leaves), rounds(4))
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for again, before in zip(torch.autograd.grad(loss, leaves), first, strict=True):
        assert torch.equal(again, before)


def test_frozen_weights_collect_nothing(leaves):
    weight, bias = (leaf.detach() for leaf in leaves)
    assert with_summed_gradients(weight, bias) == (weight, bias)
    given = rounds(5)
    loss = run(weight, bias, given)
    loss.backward()
    assert all(x.grad is not None for x, _ in given)
