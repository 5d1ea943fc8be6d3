"""The rows on training steps at the smallest size: what they compare, and that they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from benchmarks import decoding, steps
from benchmarks.naive import naive_loss
from benchmarks.setting import SIZES, Setting
from mom.model import MoMForCausalLM
from tests.helpers.models import small_model, tokens

SMALLEST = SIZES["smallest"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let contenders run once, and take the seconds in this dictionary."""
    seconds: dict[str, float] = {}

    def timed(work: Mapping[str, Callable[[], object]], *_: object, **__: object) -> dict:
        for run in work.values():
            run()
        return {name: [seconds[name]] for name in work}

    monkeypatch.setattr(steps, "timed", timed)
    monkeypatch.setattr(decoding, "timed", timed)
    return seconds


def test_the_naive_variant_is_the_same_model():
    model, ids = small_model(), tokens(2, 16)
    ours = model(input_ids=ids, labels=ids, output_logits=False)
    ours.lm_loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss = naive_loss(model, ids)
    loss.backward()
    assert loss.item() == pytest.approx(ours.lm_loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_of_a_step_is_of_useful_flops(dtype, clock, monkeypatch):
    monkeypatch.setattr(steps, "PRODUCTS", 1)
    clock.update(step=3.0, products=2.0)
    setting = Setting(SMALLEST, dtype)
    model = setting.model(SMALLEST.config())
    flops = setting.flops(model.config, setting.usage(model))
    found = steps.of_matmul_rate(dtype, SMALLEST)
    assert found.value == pytest.approx((flops / 3) / (2 * 2048 * 768 * 3072 / 2))


def test_gpt2_counts_with_the_ratio_of_flops(clock):
    clock.update(step=3.0, gpt2=2.0, mom=3.0)
    setting = Setting(SMALLEST)
    model = setting.model(SMALLEST.config())
    flops = setting.flops(model.config, setting.usage(model))
    ratio = flops / setting.flops(SMALLEST.plain(SMALLEST.layers))
    assert ratio > 2
    assert steps.to_gpt2(SMALLEST).value == pytest.approx(3 / (2 * ratio))
    # Decoding is compared with as many layers as have its FLOPs.
    assert decoding.to_gpt2(SMALLEST).value == pytest.approx(3 / 2, rel=0.15)


def test_a_larger_pool_is_compared_with_a_smaller_one(clock):
    clock.update({"4": 2.0, "64": 3.0})
    assert steps.pool_growth(torch.float32, SMALLEST).value == 1.5


def test_exactly_half_of_the_choices_skip(clock, monkeypatch):
    shares = []
    training = Setting.mom_training

    def recorded(self: Setting, model: MoMForCausalLM, **inputs: object) -> Callable[[], None]:
        if "choices" in inputs:
            routing = model(input_ids=self.ids, output_routing=True, **inputs).routing
            took = [pool.took_module.float().mean() for record in routing for pool in record]
            shares.append(torch.stack(took).mean().item())
        else:
            assert model.config.num_stages == 0
            assert model.config.graph_depth == SMALLEST.config().fixed_depth
        return training(self, model, **inputs)

    monkeypatch.setattr(Setting, "mom_training", recorded)
    clock.update(none=5.0, half=3.0, rest=1.0)
    assert steps.half_skipped(SMALLEST).value == 0.5
    assert shares == [1.0, 0.5]


def test_memory_is_less_than_that_of_the_naive_variant():
    assert 0.1 < steps.memory(size=SMALLEST).value < 1


def test_narrow_models_have_equal_flops(clock, monkeypatch):
    models = []
    training = Setting.mom_training
    monkeypatch.setattr(
        Setting, "mom_training", lambda self, model: models.append((self, model)) or training(self, model)
    )
    clock.update(mom=3.0, plain=2.0)
    assert steps.narrow(48, 2, 32).value == 1.5
    ours, theirs = (setting.flops(model.config, setting.usage(model)) for setting, model in models)
    assert ours == pytest.approx(theirs, rel=0.03)


def test_both_models_decode_the_tokens_that_are_asked_for():
    setting = Setting(SMALLEST)
    for model in (setting.model(SMALLEST.config()), decoding.build_gpt2(SMALLEST, 1)):
        assert decoding.greedy(model.eval(), setting.ids[:1, :12], 4)().shape == (1, 16)


def test_the_plain_model_has_about_the_flops_that_are_asked_for():
    setting = Setting(SMALLEST)
    assert setting.plain_with_flops(setting.flops(SMALLEST.plain(5)) * 1.02) == SMALLEST.plain(5)
