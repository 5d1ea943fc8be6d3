"""Choices that settle per token ID; test_reference.py holds their values and gradients."""

from __future__ import annotations

import pytest
import torch

from mom.model import MoMForCausalLM
from mom.model.registry import InvalidOption
from mom.model.routers.router import Router
from tests.helpers.models import settle_randomly, small_config, small_model, tokens

VOCABULARY = 61


def settling_model(**changes):
    return small_model(**{"router": "linear", "top_k": 1, "settle_steps": 10} | changes)


def test_a_token_keeps_the_module_it_took_most_often():
    router = next(part for part in settling_model().modules() if isinstance(part, Router))
    rounds, modules = router.layout.num_rounds, router.layout.num_modules
    counts = torch.zeros(rounds, VOCABULARY, modules, dtype=torch.int32)
    counts[0, 3] = torch.tensor([1, 5, 2])
    counts[rounds - 1, 7, 2] = 1
    router.settle(counts)
    wanted = torch.full((rounds, VOCABULARY), -1)
    wanted[0, 3], wanted[rounds - 1, 7] = 1, 2
    assert router.settled.tolist() == wanted.tolist()


@pytest.mark.parametrize("router", ["linear", "embedding", "mlp", "gru"])
def test_settled_tokens_take_their_module_or_skip_and_others_choose(router):
    model, ids = settling_model(router=router), tokens(4, 16)
    before = model(ids, output_routing=True).routing
    settle_randomly(model)
    after = model(ids, output_routing=True).routing
    skipped = 0
    for stage in model.model.stages:
        for h in range(stage.num_rounds):
            kept = stage.ffn.router.settled[h][ids]  # (B, T)
            chosen = after[h].ffn.selected[..., 0]
            took = (kept >= 0) & after[h].ffn.took_module
            assert torch.equal(chosen[took], kept[took].long())
            skipped += int(((kept >= 0) & ~took).sum())
            assert ((kept >= 0) & (before[h].ffn.selected[..., 0] != chosen)).any()
    first = model.model.stages[0].attention.router.settled[0][ids] < 0
    assert torch.equal(before[0].attention.selected[first], after[0].attention.selected[first])
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Router):
                part.output.bias[-1] = 100.0
    assert not any(record.ffn.took_module.any() for record in model(ids, output_routing=True).routing)


def test_forced_modules_run_with_full_weight_and_removed_modules_leave_the_choice_to_the_router():
    model, ids = settling_model(skip=False), tokens(2, 9)
    settle_randomly(model)
    forced = torch.ones(2, 9, dtype=torch.int64)
    routing = model(ids, output_routing=True, choices={"ffn": forced}).routing
    assert all((record.ffn.selected == 1).all() and (record.ffn.weights == 1).all() for record in routing)
    router = model.model.stages[0].ffn.router
    with router.without([1]):
        routing = model(ids, output_routing=True).routing
    assert all((record.ffn.selected != 1).all() and (record.ffn.weights == 1).all() for record in routing)


def test_a_step_without_modules_keeps_skip_open_also_where_none_may_skip():
    model, ids = settling_model(skip_exploration=0.99, skip_trials=1.0).train(), tokens(8, 9)
    settle_randomly(model)
    router = model.model.stages[0].ffn.router
    with router.without(range(router.layout.num_modules)):
        output = model(ids, labels=ids, output_routing=True)
    assert output.loss.isfinite() and not any(record.ffn.took_module.any() for record in output.routing)
    assert all(record.ffn.scores.isfinite().all() for record in output.routing)


def test_it_is_saved_and_loaded_and_token_ids_added_later_are_not_settled(tmp_path):
    model = settling_model().eval()
    settle_randomly(model)
    model.save_pretrained(tmp_path)
    again = MoMForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(2, 9)
    assert torch.equal(again(ids).logits, model(ids).logits)
    again.resize_token_embeddings(VOCABULARY + 2)
    again(torch.full((1, 4), VOCABULARY + 1))


def test_embeddings_in_place_of_ids_are_an_error():
    model, ids = settling_model(), tokens(2, 9)
    with pytest.raises(ValueError, match=r"router\.settle_steps requires input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(ids))


def test_pools_without_a_choice_do_not_settle():
    model = settling_model(schedule="layerwise", ffn_schedule="all")
    assert model.model.stages[0].attention.router.settled is None
    assert model.model.stages[0].ffn.router.settled is not None
    assert not [name for name, _ in small_model().named_buffers() if "settled" in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"top_k": 2},
            "settle_steps must be null with a top_k above 1, since a token ID keeps one module, got 10",
        ),
        ({"router": "random"}, "settle_steps must be null with router random, which does not learn, got 10"),
        ({"capacity": 0.5}, "settle_steps must be null with a capacity: modules choose their tokens, got 10"),
        ({"settle_steps": 0}, "settle_steps must be an integer of at least 1 or null, got 0"),
    ],
)
def test_what_cannot_settle_is_an_error(changes, message):
    with pytest.raises(InvalidOption) as error:
        small_config(**{"router": "linear", "top_k": 1, "settle_steps": 10} | changes)
    assert str(error.value) == message
