"""Dropped modules: who is dropped, for whom, and that what is left is the reference's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.model.routers import Router, build_router
from mom.model.schedules import PoolLayout
from tests.helpers.models import small_config, small_model, tokens


def a_router(**changes) -> Router:
    config = small_config(router="linear", **changes)
    return build_router(config, PoolLayout.ffn(config), 0).train()


@settings(max_examples=50, deadline=None)
@given(
    schedule=st.sampled_from(["all", "layerwise", "grouped"]),
    skip=st.booleans(),
    per=st.sampled_from(["sequence", "token"]),
    rate=st.sampled_from([0.1, 0.5, 0.99]),
    seed=st.integers(0, 99),
)
def test_open_slots_are_what_the_draws_say_and_one_module_always_stays(schedule, skip, per, rate, seed):
    router = a_router(
        schedule=schedule,
        skip=skip,
        top_k=1,
        num_ffn_modules=5,
        num_rounds=2,
        module_dropout=rate,
        module_dropout_per=per,
    )
    torch.manual_seed(seed)
    draws = router.draw_dropped(torch.zeros(3, 4, 16))
    assert draws.shape == (3, 4 if per == "token" else 1, 5)
    for round_index in range(2):
        reachable = router.layout.reachable()[round_index]
        slots = router.open_slots(round_index, draws)
        for row in range(3):
            for column in range(draws.shape[1]):
                draw = draws[row, column].tolist()
                modules = [i for i in range(5) if reachable[i]]
                kept = [i for i in modules if draw[i] >= rate] or [max(modules, key=lambda i: draw[i])]
                here = slots[row, column].tolist()
                assert [i for i in range(5) if here[i]] == kept
                assert here[5] == skip


@pytest.mark.parametrize("router", ["gru", "mlp", "linear"])
def test_in_training_a_sequence_runs_without_its_dropped_modules(router):
    model = small_model(router=router, module_dropout=0.5, top_k=2, num_attention_modules=4).train()
    torch.manual_seed(1)
    ids = tokens(6, 10)
    output = model(input_ids=ids, labels=ids, output_routing=True)
    stayed = set()
    for row in range(6):
        for name, size in (("attention", 4), ("ffn", 3)):
            steps = [getattr(decided, name) for decided in output.routing]
            open_here = {
                tuple((step.scores[row, column, :size] > 0).tolist())
                for step in steps
                for column in range(10)
            }
            assert len(open_here) == 1, "the same for all of a sequence's tokens and rounds"
            stayed |= open_here
            left = open_here.pop()
            taken = {slot for step in steps for slot in step.selected[row].flatten().tolist()}
            assert taken <= {slot for slot in range(size) if left[slot]} | {size}
            assert any(left)
    assert len(stayed) > 4
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_evaluation_drops_nothing_and_ignores_the_rate():
    ids = tokens(2, 10)
    assert torch.equal(
        small_model(module_dropout=0.9)(input_ids=ids).logits, small_model()(input_ids=ids).logits
    )
    assert small_model().train().model.stages[0].ffn.router.draw_dropped(torch.zeros(1, 2, 16)) is None


def test_without_skip_a_token_may_be_left_with_fewer_modules_than_places():
    model = small_model(module_dropout=0.9, skip=False, top_k=3).train()
    torch.manual_seed(0)
    ids = tokens(4, 6)
    output = model(input_ids=ids, labels=ids, output_routing=True)
    step = output.routing[0].ffn
    assert bool((step.selected == 3).any())
    assert not step.weights[step.selected == 3].any()
    torch.testing.assert_close(step.weights.sum(-1), torch.ones(4, 6))
    assert bool(output.loss.isfinite())


@pytest.mark.parametrize("per", ["sequence", "token"])
def test_recomputed_activations_drop_the_same(per):
    ids, gradients = tokens(3, 8), []
    for checkpointing in (False, True):
        model = small_model(module_dropout=0.5, module_dropout_per=per).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        for router in (module for module in model.modules() if isinstance(module, Router)):
            router.set_noise("gumbel", 1.0)
        torch.manual_seed(3)
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
