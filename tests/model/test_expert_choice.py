"""Expert choice: modules take their share of the tokens in training, and a causal rule predicts it elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mom.cost.estimate import flops_per_token, nominal_usage, num_active_parameters, num_parameters
from mom.model import MoMForCausalLM, MoMForSequenceClassification
from mom.model.expert_choice import capacity_loss, log_odds, top_share
from mom.model.routing import RoundRouting, choose
from tests.helpers.models import small_config, small_model, tokens

LAYERS = {"router": "linear", "top_k": 1, "schedule": "layerwise", "skipped_kv": "mask"}
DEPTHS = {
    "router": "linear",
    "top_k": 1,
    "num_stages": 2,
    "num_rounds": 1,
    "num_attention_modules": 1,
    "num_ffn_modules": 1,
    "ffn_skip": False,
    "absorbing_skip": True,
    "skipped_kv": "mask",
}
CASES = [
    LAYERS | {"capacity": 0.5},
    LAYERS | {"capacity": 0.2, "router": "gru", "skipped_kv": "zero"},
    DEPTHS | {"capacity": 0.5},
    {"router": "mlp", "top_k": "all", "capacity": 0.3},
    {"router": "linear", "top_k": 2, "capacity": 0.6, "skip_rule": "first"},
    {"router": "linear", "top_k": 1, "capacity": 0.4, "block": "llama"},
    {"router": "linear", "top_k": 1, "capacity": 0.6, "absorbing_skip": True},
    {"pools": {"attention": {"skip": False, "top_k": 1}, "ffn": {"capacity": 0.5, "top_k": 2}}},
]


def padded(lengths: tuple[int, ...], side: str) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        at = slice(max(lengths) - length, None) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = tokens(1, length, seed=row)[0], 1
    return ids, mask


def taken(step) -> Tensor:
    """Return which modules each token runs, boolean [B, T, N]."""
    modules = torch.arange(step.num_modules)
    return (step.selected[..., None] == modules).any(dim=-2)


def steps_with_capacity(model, routing):
    for decided in routing:
        for step, layout in zip(decided, model.config.pools(), strict=True):
            if layout.capacity is not None:
                yield step, layout.capacity


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("capacity", [0.125, 0.5, 1.0])
def test_every_module_takes_exactly_its_share_of_the_real_tokens(capacity, side):
    model = small_model(**LAYERS, capacity=capacity).train()
    lengths = (16, 8, 3)
    ids, mask = padded(lengths, side)
    routing = model(input_ids=ids, attention_mask=mask, output_routing=True).routing
    assert len(routing) == 4
    for h, decided in enumerate(routing):
        for step in decided:
            ran = taken(step)  # (B, T, N)
            for row, length in enumerate(lengths):
                counts = [0, 0, 0]
                counts[h % 3] = max(1, round(capacity * length))
                assert ran[row].sum(0).tolist() == counts
                assert not ran[row][~mask[row].bool()].any()


def test_a_module_takes_the_tokens_that_prefer_it_most_to_skip():
    model = small_model(router="linear", top_k="all", capacity=0.25).train()
    routing = model(input_ids=tokens(2, 12), output_routing=True).routing
    for step, _ in steps_with_capacity(model, routing):
        odds, ran = log_odds(step.logits, 3), taken(step)
        for row in range(2):
            for module in range(3):
                best = odds[row, :, module].topk(3).indices.sort().values
                assert ran[row, :, module].nonzero().flatten().tolist() == best.tolist()
        probability = torch.where(step.selected < 3, step.scores.gather(-1, step.selected), 0.0)
        torch.testing.assert_close(step.weights * (step.selected < 3), probability)


def test_a_token_wanted_by_more_than_k_modules_keeps_the_best():
    logits = torch.tensor([[[2.0, 3.0, 0.0], [1.0, -1.0, 0.0]]])  # 2 tokens, 2 modules and SKIP
    wanted = torch.tensor([[[True, True], [False, False]]])
    routing = choose(logits, num_modules=2, top_k=1, normalize=False, taken=wanted)
    assert routing.selected.tolist() == [[[1], [2]]]
    both = choose(logits, num_modules=2, top_k=2, normalize=False, taken=wanted)
    assert both.selected.tolist() == [[[1, 0], [2, 2]]]
    assert both.weights[0, 1].tolist() == [float(both.scores[0, 1, 2]), 0.0]


def test_ties_go_to_the_first_tokens():
    assert top_share(torch.zeros(1, 4, 1), 0.5)[0, :, 0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_evaluation_runs_what_a_token_prefers_to_skip(changes):
    model = small_model(**changes)
    routing = model(input_ids=tokens(3, 10), output_routing=True).routing
    shares = []
    for step, _ in steps_with_capacity(model, routing):
        preferred = log_odds(step.logits, step.num_modules) > 0
        assert not (taken(step) & ~preferred).any()
        best_k = preferred.sum(-1).clamp(max=step.selected.shape[-1])
        assert torch.equal(taken(step).sum(-1), best_k)
        shares.append(preferred.float().mean())
    assert 0 < torch.stack(shares).mean() < 1


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_evaluation_is_causal_and_training_is_not(changes):
    model = small_model(**changes)
    ids = tokens(2, 12)
    other = ids.clone()
    other[:, 7:] = tokens(2, 5, seed=9)
    torch.testing.assert_close(model(input_ids=ids).logits[:, :7], model(input_ids=other).logits[:, :7])
    model.train()
    before, after = (model(input_ids=given).logits[:, :7] for given in (ids, other))
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_cached_decoding_equals_the_full_forward(changes):
    model, ids = small_model(**changes), tokens(3, 12)
    full = model(input_ids=ids).logits
    output = model(input_ids=ids[:, :5], use_cache=True)
    logits = [output.logits]
    for position in range(5, 12):
        token = ids[:, position : position + 1]
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_padded_batch_equals_its_rows(changes, side, training):
    model = small_model(**changes).train(training)
    ids, mask = padded((9, 5, 2), side)
    logits = model(input_ids=ids, attention_mask=mask).logits
    for row in range(3):
        real = mask[row].bool()
        alone = model(input_ids=ids[row][real][None]).logits[0]
        torch.testing.assert_close(logits[row][real], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_task_alone_trains_every_router(changes):
    model, ids = small_model(**changes).train(), tokens(2, 10)
    model(input_ids=ids, labels=ids).lm_loss.backward()
    routers = [name for name, _ in model.named_parameters() if ".router.output.weight" in name]
    with_skip = [layout.name for layout in model.config.pools() if layout.capacity is not None]
    for name in routers:
        if any(f".{pool}." in name for pool in with_skip):
            assert model.get_parameter(name).grad.abs().max() > 0, name


def record(logits: Tensor):
    return choose(logits, num_modules=2, top_k=1, normalize=False, softmax=True)


def test_the_loss_is_the_cross_entropy_of_the_top_share():
    config = small_config(num_attention_modules=2, num_ffn_modules=2, num_rounds=1, capacity=0.5, top_k=1)
    # Four tokens, the last is padding: of three, a module takes two (1.5, rounded to even).
    odds = torch.tensor([[[2.0, -1.0], [0.5, 3.0], [-4.0, 1.0], [9.0, 9.0]]])
    logits = torch.cat([odds + 0.7, torch.full((1, 4, 1), 0.7)], dim=-1).requires_grad_()
    step = record(logits)
    loss = capacity_loss(config, [RoundRouting(step, step)], torch.tensor([[1, 1, 1, 0]]))
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    p = odds[0, :3].sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[0, :3, :2], (p - target) / 6)
    torch.testing.assert_close(gradient[0, :3, 2], -(p - target).sum(-1) / 6)
    assert (gradient[0, 3] == 0).all()


@pytest.mark.parametrize("changes", [LAYERS, DEPTHS, LAYERS | {"absorbing_skip": True}], ids=str)
def test_the_loss_counts_reachable_modules_and_tokens_in_the_stage(changes):
    model = small_model(**changes, capacity=0.5, capacity_coefficient=0.3, balance_coefficient=0.01).train()
    ids, mask = padded((9, 6), "right")
    output = model(input_ids=ids, attention_mask=mask, labels=ids, output_routing=True)
    torch.testing.assert_close(
        output.loss, output.lm_loss + 0.01 * output.balance_loss + 0.3 * output.capacity_loss
    )
    nats = []
    for step, capacity in steps_with_capacity(model, output.routing):
        odds, ran = log_odds(step.logits, step.num_modules), taken(step)
        for row, column, module in odds.isfinite().nonzero().tolist():
            if mask[row, column]:
                one = odds[row, column, module].view(1)
                label = ran[row, column, module].float().view(1)
                nats.append(torch.nn.functional.binary_cross_entropy_with_logits(one, label))
        assert capacity == 0.5
    torch.testing.assert_close(output.capacity_loss, torch.stack(nats).mean())


def test_without_a_capacity_there_is_no_loss_and_coefficient_0_reports_it():
    ids = tokens(1, 6)
    assert small_model(**LAYERS)(input_ids=ids, labels=ids).capacity_loss is None
    assert small_model(num_stages=0, capacity=0.5)(input_ids=ids, labels=ids).capacity_loss is None
    output = small_model(**LAYERS, capacity=0.5, capacity_coefficient=0)(input_ids=ids, labels=ids)
    assert output.capacity_loss > 0 and not output.capacity_loss.requires_grad


def test_training_makes_the_causal_rule_agree_with_the_top_share():
    torch.manual_seed(0)
    model = small_model(**LAYERS, capacity=0.25, capacity_coefficient=1.0, balance_coefficient=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = tokens(16, 16)

    def agreement() -> float:
        with torch.no_grad():
            routing = model.eval()(input_ids=ids, output_routing=True).routing
        found = []
        for step, capacity in steps_with_capacity(model, routing):
            odds = log_odds(step.logits, 3)
            found.append(((odds > 0) == top_share(odds, capacity))[odds.isfinite()].float().mean())
        return float(torch.stack(found).mean())

    before = agreement()
    for _ in range(60):
        model.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before < 0.8 and agreement() > 0.9


def test_routers_start_at_even_odds_and_do_not_explore():
    model = MoMForCausalLM(small_config(**LAYERS, capacity=0.25, skip_bias=-3.0, skip_exploration=0.5))
    ids = tokens(4, 16)
    routing = model.train()(input_ids=ids, output_routing=True).routing
    for decided in routing:
        for step in decided:
            odds = log_odds(step.logits, 3)
            assert odds[odds.isfinite()].abs().max() < 1 and taken(step).sum() == 4 * 4
    by_token = MoMForCausalLM(small_config(**LAYERS, skip_bias=-3.0))
    step = by_token(input_ids=ids, output_routing=True).routing[0].ffn
    assert log_odds(step.logits, 3)[..., 0].min() > 2


def test_forced_choices_come_before_the_capacity():
    model, ids = small_model(**LAYERS, capacity=0.25).train(), tokens(2, 8)
    given = torch.full((2, 8, 4), -1)
    given[:, 1] = torch.tensor([0, 1, 2, 0])
    given[:, 2] = 3
    routing = model(input_ids=ids, choices={"ffn": given}, output_routing=True).routing
    for h, decided in enumerate(routing):
        assert (decided.ffn.selected[:, 1] == h % 3).all() and (decided.ffn.selected[:, 2] == 3).all()


def test_a_classifier_trains_with_capacity():
    model = MoMForSequenceClassification(small_config(**DEPTHS, capacity=0.5, num_labels=2)).train()
    ids, mask = padded((7, 4), "right")
    output = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]), output_routing=True)
    assert output.capacity_loss > 0
    assert [int(taken(decided.attention).sum()) for decided in output.routing] == [4 + 2] * 2


def test_cost_counts_the_capacity():
    changes = DEPTHS | {"num_rounds": 2, "num_attention_modules": 2, "num_ffn_modules": 2}
    assert nominal_usage(small_config(**LAYERS, capacity=0.25)) == {"attention": 0.25, "ffn": 0.25}
    assert nominal_usage(small_config(**DEPTHS, capacity=0.25)) == {"attention": 0.25, "ffn": 0.25}
    assert nominal_usage(small_config(top_k=2, capacity=0.5)) == {"attention": 1.5, "ffn": 1.5}
    assert nominal_usage(small_config(top_k=1, capacity=0.5)) == {"attention": 1.0, "ffn": 1.0}
    layerwise = changes | {"schedule": "layerwise"}
    assert nominal_usage(small_config(**layerwise, capacity=0.5)) == {"attention": 0.375, "ffn": 0.375}
    config = small_config(**LAYERS, capacity=0.25)
    all_run = flops_per_token(config, 16, {"attention": 1.0, "ffn": 1.0})
    assert flops_per_token(config, 16).modules == all_run.modules / 4
    assert num_active_parameters(config) == num_parameters(config)


@pytest.mark.parametrize("changes", [LAYERS, DEPTHS], ids=str)
def test_flops_of_training_are_those_that_run(changes):
    model = small_model(**changes, capacity=0.25).train()
    routing = model(input_ids=tokens(3, 16), output_routing=True).routing
    for name, usage in nominal_usage(model.config).items():
        ran = [taken(getattr(decided, name)).float().sum(-1).mean() for decided in routing]
        assert float(torch.stack(ran).mean()) == pytest.approx(usage)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 0}, "capacity must be a number greater than 0 and at most 1 or null, got 0"),
        ({"capacity": 1.5}, "capacity must be a number greater than 0 and at most 1 or null, got 1.5"),
        ({"capacity_coefficient": -1}, "capacity_coefficient must be a number of at least 0, got -1"),
        ({"router": "random"}, "capacity must be null with router random, which does not learn, got 0.5"),
        (
            {"skip": False},
            "capacity must be null without skip: tokens that no module takes choose SKIP, got 0.5",
        ),
        ({"normalize_weights": True}, "normalize_weights must be auto or false with a capacity"),
        ({"balance_bias_rate": 0.1}, "balance_bias_rate must be 0 with a capacity"),
        ({"depth_target": 5.0, "top_k": 1}, "depth_target must be null with a capacity"),
        (
            {"capacity": None, "pools": {"attention": {}, "ffn": {"capacity": 2}}},
            "pools.ffn.capacity must be a number greater than 0 and at most 1",
        ),
        (
            {"capacity": None, "router": "random", "pools": {"attention": {}, "ffn": {"capacity": 0.5}}},
            "pools.ffn.capacity must be null with router random",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_combined_is_rejected(changes, message):
    with pytest.raises(ValueError) as error:
        small_config(**({"capacity": 0.5} | changes))
    assert str(error.value).startswith(message)
