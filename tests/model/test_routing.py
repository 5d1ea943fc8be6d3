"""Choices, schedules, priors, and routers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.model import MoMForCausalLM
from mom.model.layout import PoolLayout
from mom.model.pools import Attention
from mom.model.routers import GRU
from mom.model.routers.router import Router
from mom.model.routing import choose
from tests.helpers.models import small_config, small_model, tokens


def layout(
    num_modules=3, num_rounds=4, schedule="all", skip=True, slots=1, top_k=2, capacity=None
) -> PoolLayout:
    return PoolLayout(
        name="attention",
        kind=Attention(),
        router=GRU(),
        position=0,
        num_modules=num_modules,
        num_skip_slots=slots,
        num_rounds=num_rounds,
        top_k=top_k,
        schedule=schedule,
        skip=skip,
        capacity=capacity,
    )


@settings(max_examples=40, deadline=None)
@given(
    scores=st.permutations([-3.0, -1.5, 0.25, 2.0]),
    top_k=st.integers(1, 4),
    normalize=st.booleans(),
    first=st.booleans(),
)
def test_choice_is_the_definition(scores, top_k, normalize, first):
    logits = torch.tensor(scores).view(1, 1, 4)
    routing = choose(logits, num_modules=3, top_k=top_k, normalize=normalize, leave_when_skip_first=first)
    probabilities = logits.flatten().softmax(0)
    order = sorted(range(4), key=lambda slot: -float(probabilities[slot]))[:top_k]
    weights = torch.stack([probabilities[slot] for slot in order])
    if normalize:
        weights = weights / weights.sum()
    if first and order[0] == 3:
        order = [3] * top_k
    torch.testing.assert_close(routing.scores.flatten(), probabilities)
    torch.testing.assert_close(routing.weights.flatten(), weights)
    assert routing.selected.flatten().tolist() == order


def test_unreachable_slots_are_never_chosen_even_when_scores_underflow():
    logits = torch.tensor([500.0, 0.0, -500.0, 400.0]).view(1, 1, 4)
    reachable = torch.tensor([True, False, True, True])
    routing = choose(logits, num_modules=3, top_k=3, normalize=True, reachable=reachable)
    assert routing.selected.flatten().tolist() == [0, 3, 2]
    assert float(routing.scores[0, 0, 1]) == 0
    assert torch.isfinite(routing.weights).all()


def test_a_bias_changes_the_choice_and_no_weight():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).view(1, 1, 4).requires_grad_()
    bias = torch.tensor([0.0, 0.0, 0.9, 0.0])
    routing = choose(logits, num_modules=3, top_k=2, normalize=False, bias=bias)
    scores = logits.softmax(-1)
    assert routing.selected.flatten().tolist() == [2, 0]  # by 0.09 + 0.9, then 0.64
    torch.testing.assert_close(routing.weights, scores[..., [2, 0]])
    torch.testing.assert_close(routing.scores, scores)
    left = choose(
        logits,
        num_modules=3,
        top_k=1,
        normalize=False,
        bias=bias,
        reachable=torch.tensor([1, 1, 0, 1]).bool(),
    )
    assert left.selected.flatten().tolist() == [0]


def test_noise_changes_the_choice_and_no_weight():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).view(1, 1, 4).requires_grad_()
    noise = torch.tensor([-5.0, 0.0, 0.0, 2.5]).view(1, 1, 4)
    routing = choose(logits, num_modules=3, top_k=2, normalize=False, noise=noise)
    scores = logits.softmax(-1)
    assert routing.selected.flatten().tolist() == [3, 1]  # by 1.5, then 1.0
    torch.testing.assert_close(routing.weights, scores[..., [3, 1]])
    torch.testing.assert_close(routing.scores, scores)
    raw = choose(logits, num_modules=3, top_k=2, normalize=False, noise=noise, softmax=False)
    assert raw.selected.flatten().tolist() == [3, 1] and raw.weights.flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    "options", [{}, {"bias": torch.zeros(4)}, {"noise": torch.zeros(1, 320, 4)}], ids=str
)
@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-3, 1e-6])
def test_choices_are_the_largest_logits_when_probabilities_underflow(temperature, options):
    logits = torch.randn(1, 320, 4, generator=torch.Generator().manual_seed(0)) / temperature
    routing = choose(logits, num_modules=3, top_k=3, normalize=True, **options)
    assert torch.equal(routing.selected, logits.argsort(dim=-1, descending=True)[..., :3])
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(1, 320))


def test_a_bias_breaks_no_ties_of_underflowing_probabilities():
    """The bias moves choices by probability; modules that it moves equally keep the order of their logits."""
    logits = torch.tensor([900.0, -900.0, 300.0, -300.0]).view(1, 1, 4)
    chosen = {}
    for moved in (0.0, 0.5, 2.0):
        bias = torch.tensor([0.0, moved, moved, moved])
        routing = choose(logits, num_modules=3, top_k=4, normalize=True, bias=bias)
        chosen[moved] = routing.selected.flatten().tolist()
    assert chosen == {0.0: [0, 2, 3, 1], 0.5: [0, 2, 3, 1], 2.0: [2, 3, 1, 0]}


def test_normalized_weights_of_choices_whose_probabilities_underflow():
    logits = torch.tensor([900.0, 1.0, 0.0, -1.0]).view(1, 1, 4).requires_grad_()
    bias = torch.tensor([-2.0, 0.0, 0.0, 0.0])
    routing = choose(logits, num_modules=3, top_k=2, normalize=True, bias=bias)
    assert routing.selected.flatten().tolist() == [1, 2]
    torch.testing.assert_close(routing.weights.flatten(), torch.tensor([1.0, 0.0]).softmax(0))
    routing.weights[0, 0, 0].backward()
    assert logits.grad.flatten()[1:3].abs().min() > 0.1 and torch.isfinite(logits.grad).all()


def test_skip_gets_the_assignments_of_unreachable_modules():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(2, 1, 4)
    reachable = torch.tensor([[True, False, False, True], [True, True, True, False]]).view(2, 1, 4)
    routing = choose(logits, num_modules=3, top_k=3, normalize=True, reachable=reachable)
    assert routing.selected.flatten(1).tolist() == [[0, 3, 3], [0, 1, 2]]
    first = logits[0, 0, [0, 3]].softmax(-1)
    torch.testing.assert_close(routing.weights[0, 0], torch.tensor([*first.tolist(), 0.0]))
    torch.testing.assert_close(routing.scores[0, 0], torch.tensor([first[0], 0.0, 0.0, first[1]]))


def test_several_skip_slots_fold_into_one():
    logits = torch.tensor([1.0, 0.0, 3.0, 2.0]).view(1, 1, 4)
    routing = choose(logits, num_modules=2, top_k=2, normalize=True)
    assert routing.scores.shape[-1] == 3
    assert routing.selected.flatten().tolist() == [2, 2]
    torch.testing.assert_close(routing.scores[0, 0, 2], logits.softmax(-1)[0, 0, 2:].sum())


def test_schedules():
    assert layout(schedule="all").reachable() == [[True] * 4] * 4
    assert layout(schedule="layerwise", skip=False).reachable() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [True, False, False, False],
    ]
    grouped = layout(num_modules=6, num_rounds=3, schedule="grouped").reachable()
    assert [[slot for slot in range(7) if row[slot]] for row in grouped] == [[0, 1, 6], [2, 3, 6], [4, 5, 6]]
    # With fewer modules than rounds, every round has a module, in order, and all are used.
    few = layout(num_modules=2, num_rounds=4, schedule="grouped", skip=False).reachable()
    assert [row.index(True) for row in few] == [0, 0, 1, 1]


def test_priors_prefer_order_then_skip():
    ordered = layout(num_modules=2, num_rounds=4).prior("ordered", 1.5)
    looped = layout(num_modules=2, num_rounds=4).prior("looped", 1.5)
    assert ordered == [[3.0, 0, 1.5], [0, 3.0, 1.5], [0, 0, 3.0], [0, 0, 3.0]]
    assert looped == [[3.0, 0, 1.5], [0, 3.0, 1.5], [1.5, 0, 3.0], [0, 1.5, 3.0]]


def test_a_cyclic_prior_prefers_modules_in_turn_and_leaves_skip_alone():
    assert layout(num_modules=2, num_rounds=3).prior("cyclic", 1.5) == [[1.5, 0, 0], [0, 1.5, 0], [1.5, 0, 0]]
    # With more modules than rounds, the rounds share all of them.
    large = layout(num_modules=5, num_rounds=2).prior("cyclic", 2.0)
    assert large == [[2.0, 0, 2.0, 0, 2.0, 0], [0, 2.0, 0, 2.0, 0, 0]]
    # It is about modules, not about SKIP against a round's only module or one that chooses its tokens.
    assert layout(num_modules=2, num_rounds=2, schedule="layerwise").prior("cyclic", 2.0) == [[0, 0, 0]] * 2
    assert layout(num_modules=2, num_rounds=2, top_k=1, capacity=0.5).prior("cyclic", 2.0) == [[0, 0, 0]] * 2


def test_a_grouped_prior_prefers_all_of_the_rounds_group():
    table = layout(num_modules=4, num_rounds=2, schedule="grouped").prior("looped", 1.0)
    assert table == [[2.0, 2.0, 0, 0, 1.0], [0, 0, 2.0, 2.0, 1.0]]


def test_modules_come_from_layers():
    assert layout(num_modules=4, num_rounds=2).layers() == [0, 1, 2, 3]
    assert layout(num_modules=7, num_rounds=3, schedule="grouped").layers() == [0, 0, 1, 1, 2, 2, 2]
    assert layout(num_modules=2, num_rounds=4, schedule="grouped").layers() == [0, 1]


def test_prior_is_in_units_of_the_temperature_and_learned():
    model = small_model(router_prior="ordered", router_prior_strength=2.0, temperature=0.25)
    prior = model.model.stages[0].attention.router.prior
    assert isinstance(prior, torch.nn.Parameter)
    assert prior.tolist() == [[1.0, 0, 0, 0.5], [0, 1.0, 0, 0.5], [0, 0, 1.0, 0.5], [0, 0, 0, 1.0]]


def test_random_router_depends_on_token_id_and_round_only_and_is_uniform():
    config = small_config(router="random", vocab_size=5000)
    router, x = Router(config, config.pools()[0], salt=0), torch.zeros(2, 5000, 16)
    ids = torch.stack([torch.arange(5000), torch.arange(5000).flip(0)])
    first = [router(x, None, h, ids)[0].selected for h in range(2)]
    assert torch.equal(first[0][0], first[0][1].flip(0))
    assert not torch.equal(first[0], first[1])
    counts = first[0][0].flatten().bincount(minlength=4).float()
    assert float((counts / counts.sum() - 0.25).abs().max()) < 0.02
    other = Router(config, config.pools()[0], salt=1)(x, None, 0, ids)[0].selected
    assert not torch.equal(first[0], other)


def test_random_router_needs_token_ids():
    model = small_model(router="random")
    with pytest.raises(ValueError, match="router=random requires input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 16))


def test_router_state_starts_at_zero_in_each_stage():
    model = small_model(num_stages=2, num_rounds=1, num_attention_modules=2, num_ffn_modules=2)
    stages = model.model.stages
    stages[1].load_state_dict(stages[0].state_dict())
    x = torch.randn(1, 3, 16)
    scores = [stage.attention.router(x, None, 0)[0].scores for stage in stages]
    assert torch.equal(*scores)
    output = model(input_ids=tokens(1, 3), output_routing=True, output_hidden_states=True)
    entering = output.hidden_states[3]  # after embedding, bottom, one round, anchor
    again = stages[1].attention.router(entering, None, 0)[0].scores
    torch.testing.assert_close(output.routing[1].attention.scores, again)


def test_hashed_prior_starts_as_the_random_router_and_is_learned_away():
    ids = tokens(2, 16)
    options = {"top_k": 1, "skip": False, "num_rounds": 2}
    prior = {"router": "linear", "router_prior": "hashed", "temperature": 0.5}
    strong = small_model(**options, **prior, router_prior_strength=50.0).eval()
    fixed = small_model(**options, router="random").eval()
    weak = small_model(**options, **prior, router_prior_strength=1e-3).eval()
    rounds = {
        name: model(input_ids=ids, output_routing=True).routing
        for name, model in {"strong": strong, "fixed": fixed, "weak": weak}.items()
    }
    for name in ("attention", "ffn"):
        for strong_round, fixed_round in zip(rounds["strong"], rounds["fixed"], strict=True):
            assert torch.equal(getattr(strong_round, name).selected, getattr(fixed_round, name).selected)
        chosen = getattr(rounds["weak"][0], name)
        assert not torch.equal(chosen.selected, getattr(rounds["fixed"][0], name).selected)
    router = strong.model.stages[0].ffn.router
    expected = router.output(torch.zeros(1, 1, 16)) / 0.5  # the linear layer's bias
    found, _ = router(torch.zeros(1, 1, 16), None, 1, torch.tensor([[7]]))
    expected[0, 0, found.selected.item()] += 50.0  # in units of the temperature
    torch.testing.assert_close(found.logits[..., :-1], expected[..., :-1])  # without SKIP


def test_hashed_prior_requires_ids():
    router = small_model(router_prior="hashed", router="linear").model.stages[0].ffn.router
    with pytest.raises(ValueError, match=r"router\.router_prior=hashed requires input_ids"):
        router(torch.zeros(1, 1, 16), None, 0, None)


def test_hashed_prior_is_the_same_after_the_vocabulary_grows(tmp_path):
    model = small_model(router_prior="hashed", router_prior_strength=5.0).eval()
    model.resize_token_embeddings(model.config.vocab_size + 8)
    ids = torch.arange(model.config.vocab_size - 16, model.config.vocab_size)[None]
    model.save_pretrained(tmp_path)
    again = MoMForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("changes", [{"schedule": "layerwise"}, {"capacity": 0.5, "top_k": 1}], ids=str)
def test_hashed_prior_leaves_alone_rounds_with_one_module_and_modules_that_choose(changes):
    options = {"router": "linear", "temperature": 1.0, "router_prior_strength": 5.0, **changes}
    router = small_model(router_prior="hashed", **options).model.stages[0].ffn.router
    x = torch.randn(1, 4, 16)
    reached = router.reachable[1]
    found = router(x, None, 1, tokens(1, 4))[0].logits
    torch.testing.assert_close(found[..., reached], router.output(x)[..., reached])


def test_hashed_prior_prefers_a_module_that_the_round_reaches():
    options = {"schedule": "grouped", "num_ffn_modules": 4, "num_attention_modules": 4, "num_rounds": 2}
    model = small_model(router_prior="hashed", router_prior_strength=50.0, top_k=1, **options).eval()
    routing = model(input_ids=tokens(2, 16), output_routing=True).routing
    assert [set(step.ffn.selected.flatten().tolist()) for step in routing] == [{0, 1}, {2, 3}]
