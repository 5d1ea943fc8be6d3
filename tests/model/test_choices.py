"""Forced choices: values, weights, errors, and the paths that they pass through."""

from __future__ import annotations

import pytest
import torch

from mom.model import MoMForSequenceClassification
from mom.model.reference import ReferenceMoM
from tests.helpers.models import small_config, small_model, tokens

POOLS = ("attention", "ffn")


def recorded(output) -> dict[str, torch.Tensor]:
    """Return the choices of a forward pass, [B, T, R, K] by pool."""
    return {
        name: torch.stack([getattr(step, name).selected for step in output.routing], dim=2) for name in POOLS
    }


def drawn(model, batch: int, length: int, *, own: float = 0.3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw choices, [B, T, R, K] by pool: distinct in each token and round, and -1 with probability ``own``."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    result = {}
    for layout in config.pools():
        rounds = config.num_stages * config.num_rounds
        noise = torch.rand(batch, length, rounds, layout.num_modules + 1, generator=generator)
        ranks = noise.argsort(dim=-1)[..., : layout.num_selected()]
        left = torch.rand(ranks.shape, generator=generator) < own
        result[layout.name] = ranks.masked_fill(left, -1)
    return result


ROUND_TRIPS = [
    {},
    {"top_k": 1},
    {"router": "linear", "top_k": 3, "skip_rule": "first", "balance_bias_rate": 0.1},
    {"router": "mlp", "top_k": "all", "schedule": "layerwise"},
    {"router": "random", "top_k": 1},
    {"router": "sequential"},
    {"schedule": "grouped", "num_rounds": 2, "num_ffn_modules": 4, "num_stages": 2},
    {"top_k": 1, "absorbing_skip": True},
    {"num_skip_slots": 2, "top_k": 2},
]


@pytest.mark.parametrize("changes", ROUND_TRIPS, ids=str)
def test_forcing_the_recorded_choices_changes_nothing(changes):
    model, ids = small_model(**changes), tokens(2, 7)
    own = model(input_ids=ids, output_routing=True)
    forced = model(input_ids=ids, output_routing=True, choices=recorded(own))
    torch.testing.assert_close(forced.logits, own.logits)
    for before, after in zip(own.routing, forced.routing, strict=True):
        for name in POOLS:
            torch.testing.assert_close(getattr(after, name).selected, getattr(before, name).selected)
            torch.testing.assert_close(getattr(after, name).weights, getattr(before, name).weights)
            torch.testing.assert_close(getattr(after, name).scores, getattr(before, name).scores)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 1},
        {"top_k": 1, "skip": False},
        {"router": "linear", "skip_rule": "first", "normalize_weights": False, "skipped_kv": "mask"},
        {"router": "mlp", "top_k": 3, "num_stages": 2, "num_rounds": 2},
        {"router": "random"},
        {"router": "random", "top_k": 1, "absorbing_skip": True},
        {"router": "sequential", "top_k": 1},
        {"router": "sequential", "top_k": 2},
        {"router": "oracle", "top_k": 1},
        {"router": "oracle", "top_k": 2},
    ],
    ids=str,
)
def test_forced_choices_equal_the_reference(changes):
    model, ids = small_model(**changes), tokens(2, 7)
    choices = drawn(model, 2, 7, own=0.0 if model.config.router in ("oracle", "sequential") else 0.3)
    output = model(input_ids=ids, output_routing=True, choices=choices)
    reference = ReferenceMoM.from_model(model)
    for row in range(2):
        logits, rounds = reference(ids[row], {name: given[row] for name, given in choices.items()})
        torch.testing.assert_close(output.logits[row], logits, atol=2e-5, rtol=1e-4)
        for step, record in zip(output.routing, rounds, strict=True):
            for name in POOLS:
                fast = getattr(step, name)
                assert fast.selected[row].tolist() == [choice.selected for choice in record[name]]
                weights = torch.stack([choice.weights for choice in record[name]])
                torch.testing.assert_close(fast.weights[row], weights, atol=1e-5, rtol=1e-4)


def test_a_place_of_minus_one_is_the_routers_best_other_module():
    model, ids = small_model(num_rounds=1), tokens(1, 5)
    own = model(input_ids=ids, output_routing=True).routing[0].attention
    best = own.logits.argsort(dim=-1, descending=True)  # (1, 5, 4)
    worst = best[..., -1]
    for places in ([worst, torch.full_like(worst, -1)], [torch.full_like(worst, -1), worst]):
        choices = {"attention": torch.stack(places, dim=-1)[:, :, None]}  # (1, 5, 1, 2)
        step = model(input_ids=ids, output_routing=True, choices=choices).routing[0].attention
        expected = [best[..., 0] if place is not worst else worst for place in places]
        assert torch.equal(step.selected, torch.stack(expected, dim=-1))
        weights = own.scores.gather(-1, step.selected)
        torch.testing.assert_close(step.weights, weights / weights.sum(-1, keepdim=True))


def test_a_module_named_twice_counts_once():
    model, ids = small_model(num_rounds=2), tokens(1, 5)
    twice = model(input_ids=ids, choices={"ffn": torch.ones(1, 5, 2, 2, dtype=torch.long)})
    once = model(input_ids=ids, choices={"ffn": torch.ones(1, 5, 2, dtype=torch.long)})
    torch.testing.assert_close(twice.logits, once.logits)


def test_shapes_without_rounds_or_places_stand_for_all_rounds_and_the_first_place():
    model, ids = small_model(num_rounds=2, num_stages=2), tokens(2, 5)
    modules = torch.randint(4, (2, 5))
    full = torch.stack([modules[:, :, None].expand(2, 5, 4), torch.full((2, 5, 4), -1)], dim=-1)
    expected = model(input_ids=ids, choices={"ffn": full}).logits
    for given in (modules, modules[:, :, None].expand(2, 5, 4), full[..., :1]):
        torch.testing.assert_close(model(input_ids=ids, choices={"ffn": given}).logits, expected)


def test_rounds_of_all_stages_count_in_order():
    model, ids = small_model(num_rounds=2, num_stages=2, top_k=1, skip=False), tokens(1, 4)
    choices = torch.tensor([0, 1, 2, 1]).expand(1, 4, 4)
    output = model(input_ids=ids, output_routing=True, choices={"ffn": choices})
    assert [step.ffn.selected[0, 0].item() for step in output.routing] == [0, 1, 2, 1]


def test_skip_can_be_forced_where_the_router_cannot_choose_it():
    model, ids = small_model(skip=False, top_k=1, anchors=False), tokens(1, 4)
    output = model(
        input_ids=ids,
        output_hidden_states=True,
        choices={name: torch.full((1, 4), 3) for name in POOLS},
    )
    assert torch.equal(output.hidden_states[1], output.hidden_states[5])  # before and after the rounds


def test_gradients_reach_the_router_through_the_weight_of_a_forced_module():
    model, ids = small_model(top_k=1, num_rounds=1), tokens(1, 6)
    model(input_ids=ids, labels=ids, choices={"ffn": torch.zeros(1, 6, dtype=torch.long)}).lm_loss.backward()
    assert model.model.stages[0].ffn.router.output.weight.grad.abs().sum() > 0


def test_a_classifier_takes_choices():
    model = MoMForSequenceClassification(small_config(num_labels=2)).eval()
    ids = tokens(1, 6)
    output = model(input_ids=ids, output_routing=True, choices={"ffn": torch.full((1, 6), 2)})
    assert all((step.ffn.selected[..., 0] == 2).all() for step in output.routing)


def test_cached_decoding_takes_the_choices_of_the_current_tokens():
    model, ids = small_model(), tokens(2, 8)
    choices = drawn(model, 2, 8)
    full = model(input_ids=ids, choices=choices).logits

    def part(at: slice) -> dict[str, torch.Tensor]:
        return {name: given[:, at] for name, given in choices.items()}

    output = model(input_ids=ids[:, :5], use_cache=True, choices=part(slice(0, 5)))
    logits = [output.logits]
    for t in range(5, 8):
        output = model(
            input_ids=ids[:, t : t + 1],
            past_key_values=output.past_key_values,
            use_cache=True,
            choices=part(slice(t, t + 1)),
        )
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"router": "oracle", "top_k": 1}], ids=str)
def test_checkpointed_and_compiled_rounds_give_the_same_loss_and_gradients(changes):
    ids = tokens(2, 8)
    results = []
    for change in ("none", "checkpointing", "compile"):
        model = small_model(num_rounds=2, **changes).train()
        if change == "checkpointing":
            model.gradient_checkpointing_enable()
        elif change == "compile":
            model.model.compile_layers(backend="aot_eager")
        choices = drawn(model, 2, 8, own=0.0 if changes else 0.3)
        loss = model(input_ids=ids, labels=ids, output_logits=False, choices=choices).loss
        loss.backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    for loss, gradients in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        for gradient, expected in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_a_model_that_is_compiled_as_a_whole_takes_choices():
    model, ids = small_model(num_rounds=2), tokens(2, 8)
    choices = drawn(model, 2, 8)
    expected = model.model(input_ids=ids, choices=choices).last_hidden_state
    compiled = torch.compile(model.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        actual = compiled(input_ids=ids, use_cache=False, choices=choices).last_hidden_state
    torch.testing.assert_close(actual, expected)


def full(value: int, *shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
    return torch.full(shape or (1, 4, 4), value, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "choices", "message"),
    [
        ({}, {"fnn": full(0)}, r"`choices` must name pools of the model \(attention, ffn\), got fnn"),
        (
            {},
            {"ffn": full(0, 1, 4, 3)},
            r"`choices\['ffn'\]` must be int64 of shape .* B, T, R = 1, 4, 4, got",
        ),
        ({}, {"ffn": full(0, 1, 3)}, "B, T, R = 1, 4, 4"),
        ({}, {"ffn": full(0, dtype=torch.int32)}, "must be int64"),
        ({}, {"ffn": full(0, 1, 4, 4, 3)}, r"must have at most top_k \(2\) places, got 3"),
        ({}, {"ffn": full(4)}, r"must be between -1 .* and 3 \(SKIP\), got values from 4 to 4"),
        ({}, {"ffn": full(-2)}, r"must be between -1"),
        (
            {"schedule": "layerwise"},
            {"attention": full(1)},
            r"must be reachable modules, got 1 in round 0, which can reach \[0\]",
        ),
        (
            {"router": "oracle"},
            {"ffn": full(0)},
            r"router=oracle requires `choices\['attention'\]` for every",
        ),
        ({"router": "oracle"}, None, "router=oracle requires `choices"),
        ({"router": "oracle"}, {"attention": full(0), "ffn": full(-1)}, r"requires `choices\['ffn'\]`"),
        ({"num_stages": 0}, {"ffn": full(0)}, r"pools of the model \(none, because it has no stages\)"),
    ],
)
def test_invalid_choices_are_rejected(changes, choices, message):
    model = small_model(**changes)
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(1, 4), choices=choices)


def test_an_oracle_needs_no_choices_where_there_is_none():
    model = small_model(router="oracle", top_k=1, num_attention_modules=1, skip=False, ffn_skip=True)
    ids = tokens(1, 4)
    output = model(input_ids=ids, output_routing=True, choices={"ffn": full(2, 1, 4)})
    for step in output.routing:
        assert (step.attention.selected == 0).all() and (step.attention.weights == 1).all()
        assert (step.ffn.selected == 2).all() and (step.ffn.weights == 1).all()
