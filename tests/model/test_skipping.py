"""How SKIP starts (``skip_bias``), is explored (``skip_exploration``), and learns (``skip_trials``, ``skip_price``)."""

from __future__ import annotations

import pytest
import torch

from mom.interop import plain_config, upcycle
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.registry import register_router, routers
from mom.model.routers import RouterKind
from mom.model.routers.router import Router
from mom.model.skipping import try_skip
from tests.helpers.models import small_config, small_model, tokens

LEARNED = ("linear", "embedding", "mlp", "gru")


def routers_of(model) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def outputs(model, ids):
    return model(input_ids=ids, labels=ids, output_routing=True)


def steps(output) -> list:
    return [step for decisions in output.routing for step in decisions]


def explored(step) -> torch.Tensor:
    """Return the tokens for which SKIP was closed, boolean [B, T]."""
    return step.logits[..., step.num_modules :].isneginf().all(dim=-1)


# ---- skip_bias ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", LEARNED)
@pytest.mark.parametrize("slots", [1, 2])
def test_the_output_of_skip_starts_at_its_bias(router, slots):
    model = MoMForCausalLM(small_config(router=router, skip_bias=-2.0, num_skip_slots=slots))
    for each in routers_of(model):
        assert each.output.bias[:3].tolist() == [0.0] * 3
        assert each.output.bias[3:].tolist() == [-2.0 * 0.5] * slots  # times the temperature


def test_skip_starts_rare_by_default():
    torch.manual_seed(0)
    model = MoMForCausalLM(small_config(temperature=1.0, top_k=1, skip_bias=MoMConfig().skip_bias)).eval()
    for step in steps(outputs(model, tokens(2, 16))):
        assert step.scores[..., 3].mean() < 0.03
        assert (step.selected != 3).all()


def test_a_pool_without_skip_starts_at_zero():
    for each in routers_of(MoMForCausalLM(small_config(skip=False, skip_bias=-2.0))):
        assert not each.output.bias.any()


def test_a_router_without_a_bias_needs_none():
    class Unbiased(RouterKind):
        def layers(self, options, layout):
            return {"output": torch.nn.Linear(options.d_model, layout.num_slots, bias=False)}

        def score(self, router, x, state, round_index, token_ids):
            return router.output(x), None

    register_router("unbiased")(Unbiased)
    try:
        output = outputs(MoMForCausalLM(small_config(router="unbiased")).train(), tokens(2, 8))
        assert output.loss.isfinite()
    finally:
        routers.pop("unbiased")


def test_loading_keeps_the_trained_bias(tmp_path):
    model = small_model(skip_bias=-2.0)
    model.save_pretrained(tmp_path)
    loaded = MoMForCausalLM.from_pretrained(tmp_path)
    for ours, theirs in zip(routers_of(model), routers_of(loaded), strict=True):
        assert torch.equal(ours.output.bias, theirs.output.bias)


def test_an_export_without_the_options_computes_what_it_did(tmp_path):
    model = small_model()
    fields = model.config.to_dict()
    del fields["skip_bias"], fields["skip_exploration"], fields["skip_trials"]
    old = MoMForCausalLM(MoMConfig.from_dict(fields)).eval()
    assert old.config.skip_exploration > 0
    old.load_state_dict(model.state_dict())
    ids = tokens(2, 8)
    assert torch.equal(old(ids).logits, model(ids).logits)


def test_upcycling_gives_new_routers_the_bias_and_keeps_the_function_with_a_prior():
    config = small_config(
        router_prior="ordered", top_k=1, num_rounds=3, temperature=1.0, initializer_range=0.2, skip_bias=-3.0
    )
    torch.manual_seed(0)
    plain = MoMForCausalLM(plain_config(config)).eval()
    mom = upcycle(plain, config)
    for each in routers_of(mom):
        assert each.output.bias.tolist() == [0.0, 0.0, 0.0, -3.0]
    ids = tokens(2, 16)
    torch.testing.assert_close(
        mom(ids, labels=ids).lm_loss, plain(ids, labels=ids).lm_loss, atol=2e-3, rtol=0
    )


# ---- skip_exploration -----------------------------------------------------------------------------------

CHANGES = [
    *({"router": router, "top_k": 1} for router in LEARNED),
    {"top_k": 1, "schedule": "layerwise"},
    {"top_k": 2, "schedule": "layerwise", "skip_rule": "first"},
    {"top_k": "all", "skip_rule": "first"},
    {"top_k": 2, "skip_rule": "first"},
    {"top_k": 1, "num_skip_slots": 2},
    {"top_k": 1, "score_function": "identity"},
    {"top_k": 1, "balance_bias_rate": 0.1},
    {"top_k": 1, "router_prior": "looped", "num_rounds": 6},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_closes_skip_and_nothing_else_for_its_share_of_the_tokens(changes):
    model, ids = small_model(skip_exploration=0.3, skip_trials=0.2, **changes).train(), tokens(64, 12)
    torch.manual_seed(0)
    output = outputs(model, ids)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    tokens_seen = tokens_closed = 0
    sequences = explored(output.routing[0].attention).all(dim=-1)  # (B,)
    assert sequences.float().mean() == pytest.approx(0.3, abs=0.1)
    for h, decisions in enumerate(output.routing):
        for step, router in zip(decisions, routers_of(model), strict=True):
            closed = explored(step)
            assert closed[sequences].all()
            tokens_seen += closed[~sequences].numel()
            tokens_closed += int(closed[~sequences].sum())
            modules = step.logits[..., : step.num_modules].isneginf()
            assert torch.equal(modules, ~router.reachable[h, : step.num_modules].expand_as(modules))
            assert (step.selected[closed] != step.num_modules).any(dim=-1).all()
            assert not step.scores[closed][:, step.num_modules].any()
            if model.config.score_function == "softmax":
                torch.testing.assert_close(
                    step.scores[closed][:, : step.num_modules],
                    step.logits[closed][:, : step.num_modules].softmax(dim=-1),
                )
            chosen = step.selected[closed]
            assert not step.weights[closed][
                chosen == step.num_modules
            ].any()  # places that nothing could fill
    assert tokens_closed / tokens_seen == pytest.approx(0.2, abs=0.02)


def test_the_other_tokens_choose_as_in_evaluation():
    model = small_model(skip_exploration=0.3, skip_trials=0.2, top_k=1, num_rounds=1).train()
    ids = tokens(8, 16)
    first = outputs(model, ids).routing[0].attention
    wanted = outputs(model.eval(), ids).routing[0].attention
    free = ~explored(first)
    assert torch.equal(first.selected[free], wanted.selected[free])
    assert torch.equal(first.weights[free], wanted.weights[free])
    # A token that chooses a module anyway chooses the same one.
    same = explored(first) & (wanted.selected[..., 0] != 3)
    assert torch.equal(first.selected[same], wanted.selected[same])


@pytest.mark.parametrize("router", LEARNED)
def test_a_sequence_that_may_not_skip_teaches_the_router_about_modules(router):
    """Without exploration, SKIP has all the tokens and the outputs of the modules get no gradient."""
    ids = tokens(8, 16)

    def gradient(exploration: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = small_model(
            router=router, top_k=1, skip_exploration=exploration, balance_coefficient=0.0
        ).train()
        with torch.no_grad():
            for each in routers_of(model):
                each.output.bias[3] = 100.0
        outputs(model, ids).lm_loss.backward()
        return torch.stack([each.output.weight.grad[:3] for each in routers_of(model)])

    assert not gradient(0.0).any()
    assert gradient(0.5).abs().sum(dim=(-1, -2)).min() > 0


# ---- skip_trials and skip_price -------------------------------------------------------------------------


def test_a_trial_drops_half_of_its_outputs_and_nothing_else():
    torch.manual_seed(0)
    trials = torch.rand(64, 32, 1) < 0.5
    factor = try_skip(torch.full((64, 32, 1), 0.9), trials, price=0.0)
    assert (factor[~trials] == 1).all()
    assert factor[trials].unique().tolist() == [0.0, 1.0]
    assert factor[trials].mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_gradient_of_a_trial_is_the_clamped_effect_and_the_price_in_units_of_the_mean_effect():
    run = torch.full((1, 5, 1), 0.9, requires_grad=True)
    trials = torch.tensor([True, True, True, True, False])[None, :, None]
    effects = torch.tensor([0.5, -0.5, 0.0, -7.0, 9.0])[None, :, None]
    (try_skip(run, trials, price=0.1) * effects).sum().backward()
    unit = (0.5 + 0.5 + 0.0 + 7.0) / 4
    expected = [0.5 + 0.1 * unit, -0.5 + 0.1 * unit, 0.1 * unit, -unit + 0.1 * unit, 0.0]
    torch.testing.assert_close(run.grad.flatten(), torch.tensor(expected))


def test_the_mean_of_both_outcomes_is_the_change_of_a_quadratic_loss():
    slopes = {}
    for seed in range(20):
        torch.manual_seed(seed)
        run = torch.full((1, 1, 1), 0.5, requires_grad=True)
        factor = try_skip(run, torch.ones(1, 1, 1, dtype=torch.bool), price=0.0)
        ((3.0 * factor - 2.0) ** 2).sum().backward()
        slopes[factor.item()] = run.grad.item()
    assert sum(slopes.values()) / 2 == pytest.approx((3.0 - 2.0) ** 2 - 2.0**2)


@pytest.mark.parametrize("router", LEARNED)
def test_skip_learns_from_trials_alone(router):
    def gradient(trials: float, price: float) -> torch.Tensor:
        torch.manual_seed(0)
        changes = {"skip_trials": trials, "skip_price": price, "balance_coefficient": 0.0}
        model = small_model(router=router, top_k=1, **changes).train()
        outputs(model, tokens(8, 16)).loss.backward()
        return torch.stack([each.output.bias.grad[3] for each in routers_of(model)])

    assert not gradient(0.0, 1.0).any()
    assert gradient(0.5, 0.0).all()
    assert (gradient(0.5, 2.0) < 0).all()  # a price above every effect raises SKIP everywhere


def test_a_trial_of_a_useful_module_lowers_skip():
    """The labels are what the module writes, so that every token is better off with it."""
    changes = {"num_bottom_blocks": 0, "num_top_blocks": 0, "anchors": False, "num_rounds": 1}
    model = small_model(top_k=1, skip_trials=1.0, router="linear", balance_coefficient=0.0, **changes)
    ids = tokens(16, 16)
    with torch.no_grad():
        for each in routers_of(model):
            each.output.bias[3] = -100.0
        labels = model(ids).logits.argmax(-1).roll(1, dims=-1)
        for each in routers_of(model):
            each.output.bias[3] = 0.0
    torch.manual_seed(0)
    model.train()(input_ids=ids, labels=labels).loss.backward()
    assert model.model.stages[0].ffn.router.output.bias.grad[3] > 0


@pytest.mark.parametrize("changes", [{"top_k": 2}, {"top_k": "all"}, {"skip": False, "top_k": 1}], ids=str)
def test_a_token_that_always_runs_a_module_does_not_explore(changes):
    model, ids = small_model(skip_exploration=0.9, skip_trials=0.5, **changes).train(), tokens(2, 8)
    assert torch.equal(model(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("router", ["sequential", "random"])
def test_routers_that_do_not_learn_do_not_explore(router):
    model, ids = (
        small_model(router=router, top_k=1, skip_exploration=0.9, skip_trials=0.5).train(),
        tokens(2, 8),
    )
    assert torch.equal(model(ids).logits, model.eval()(ids).logits)


def test_evaluation_and_forced_choices_do_not_explore():
    ids = tokens(4, 16)
    model = small_model(skip_exploration=0.9, skip_trials=0.5, top_k=1).eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    choices = {name: torch.full_like(ids, 3) for name in ("attention", "ffn")}
    forced = model.train()(ids, choices=choices, output_routing=True)
    assert all((step.selected == 3).all() and not explored(step).any() for step in steps(forced))


def test_tokens_that_exited_stay_out():
    model = small_model(skip_exploration=0.5, skip_trials=0.5, top_k=1, absorbing_skip=True).train()
    exited = torch.zeros(8, 16, dtype=torch.bool)
    for step in steps(outputs(model, tokens(8, 16))):
        assert (step.selected[exited] == 3).all()
        exited = (step.selected == 3).all(dim=-1)
    assert exited.any()


def test_padding_is_not_on_trial():
    """It has no effect on the loss, and would make the mean effect, the unit of the price, smaller."""
    model, mask = small_model(skip_trials=1.0, top_k=1).train(), torch.ones(4, 12, dtype=torch.long)
    mask[1, 5:] = 0
    mask[2, :3] = 0
    for step in steps(model(tokens(4, 12), attention_mask=mask, output_routing=True)):
        assert torch.equal(explored(step), mask.bool())


def test_the_only_choice_of_a_round_stays_open():
    model = small_model(skip_exploration=0.9, skip_trials=0.5, top_k=1).train()
    router = routers_of(model)[0]
    with router.without([0, 1, 2]):
        output = outputs(model, tokens(2, 8))
    assert output.loss.isfinite()
    assert (output.routing[0].attention.selected == 3).all()


def test_the_same_seed_draws_the_same_tokens():
    model, ids = small_model(skip_exploration=0.5, skip_trials=0.5, top_k=1).train(), tokens(4, 16)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(model(ids, labels=ids).loss.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_recomputed_activations_draw_the_same_tokens():
    ids, results = tokens(4, 12), []
    for checkpointing in (False, True):
        model = small_model(skip_exploration=0.5, skip_trials=0.5, top_k=1).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        output = outputs(model, ids)
        output.loss.backward()
        results.append((output.loss, {name: p.grad for name, p in model.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, msg=name)


def test_half_precision_explores_too():
    model = small_model(skip_exploration=0.5, skip_trials=0.5, top_k=1).bfloat16().train()
    assert sum(int(explored(step).sum()) for step in steps(outputs(model, tokens(4, 16)))) > 0
