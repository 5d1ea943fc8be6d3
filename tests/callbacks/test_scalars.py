"""The scalars that a schedule can change: noise, prior, temperature, K, rounds, coefficients, learning rate."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from mom.callbacks import Schedule
from mom.callbacks.scalars import SCALARS
from mom.model.routers.router import Router
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch


class Scales(Callback):
    """Records the scalars of each micro-batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, float]] = []

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        router = pl_module.model.model.stages[0].ffn.router
        self.seen.append((router.noise_kind, round(float(router.noise_scale), 6)))


class Priors(Callback):
    """Records the prior after every micro-batch, and after the optimizer step before its shift."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.seen.append(pl_module.model.model.stages[0].ffn.router.prior.detach().clone())


def fit(folder, module, callbacks, steps: int = 4, **options: Any) -> None:
    """Train ``steps`` steps of two micro-batches each, with a validation after every step."""
    defaults: dict[str, Any] = {"max_steps": steps, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer = plain_trainer(folder, callbacks, **(defaults | options))
    batches = [token_batch(seed) for seed in range(2 * steps)]
    trainer.fit(module, datamodule=FixedBatches(batches, batches[:1]))


VALIDATE_EACH_STEP = {"val_check_interval": 2, "limit_val_batches": 1}


@pytest.mark.parametrize(
    ("steps", "scales"), [(2, [2.0, 1.0, 0.0, 0.0]), (None, [2.0, 1.5, 1.0, 0.5])], ids=["two", "all"]
)
def test_noise_anneals_to_zero_and_is_removed(tmp_path, steps, scales):
    module, seen = small_module(), Scales()
    fit(tmp_path, module, [Schedule("gaussian_noise", start=2.0, last_step=steps), seen])
    assert seen.seen == [("gaussian" if scale else None, scale) for scale in scales for _ in range(2)]
    assert module.model.model.stages[0].ffn.router.noise_kind is None


def test_gumbel_noise_of_scale_one_samples_by_the_probabilities():
    config = small_config(router="linear", top_k=2, temperature=1.0)
    router = Router(config, config.pools()[1], 0).train()
    router.set_noise("gumbel", 1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        routing, _ = router(torch.ones(1, 40_000, 16), None, 0)
    p = routing.scores[0, 0]
    pairs = torch.bincount(4 * routing.selected[0, :, 0] + routing.selected[0, :, 1], minlength=16) / 40_000
    for first in range(4):
        for second in range(4):
            # Without replacement: the second is drawn from the remaining modules.
            expected = 0.0 if first == second else float(p[first] * p[second] / (1 - p[first]))
            assert float(pairs[4 * first + second]) == pytest.approx(expected, abs=0.01)
    chosen = routing.scores.gather(-1, routing.selected)
    torch.testing.assert_close(routing.weights, chosen / chosen.sum(-1, keepdim=True))


@pytest.mark.parametrize("kind", ["gaussian", "gumbel"])
def test_only_training_is_noisy_and_a_seed_repeats_it(kind):
    model, ids = small_model(), tokens(2, 16)
    quiet = model(input_ids=ids).logits
    for part in (model.model.stages[0].attention, model.model.stages[0].ffn):
        part.router.set_noise(kind, 1.0)
    assert torch.equal(model(input_ids=ids).logits, quiet)
    model.train()
    noisy = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        noisy.append(model(input_ids=ids).logits)
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2]) and not torch.equal(noisy[0], quiet)


def priors(tmp_path, steps: int | None, lr: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    module = small_module(router_prior="ordered", optimizer={"lr": lr, "warmup_steps": 0})
    initial = module.model.model.stages[0].ffn.router.prior.detach().clone()
    before, after = Priors(), Priors()
    decay = Schedule("prior_strength", end=None if steps is None else 0.0, last_step=steps)
    fit(tmp_path, module, [before, decay, after], steps=5)
    taken = [old - new for old, new in zip(before.seen, after.seen, strict=True)]
    return (after.seen if lr < 1e-12 else taken), initial


def test_the_prior_is_zero_after_the_last_step(tmp_path):
    seen, initial = priors(tmp_path, 4, lr=1e-30)
    for micro_batch, prior in enumerate(seen):
        step = (micro_batch + 1) // 2
        torch.testing.assert_close(prior, initial * (1 - min(step, 4) / 4), atol=1e-6, rtol=0)


def test_the_prior_shifts_equally_regardless_of_its_learned_part(tmp_path):
    taken, initial = priors(tmp_path, 4, lr=1e-2)
    for micro_batch, part in enumerate(taken):
        due = micro_batch % 2 == 1 and micro_batch < 8
        torch.testing.assert_close(part, initial / 4 * due, atol=1e-6, rtol=0)


def test_without_a_schedule_the_prior_is_constant(tmp_path):
    seen, initial = priors(tmp_path, None, lr=1e-30)
    for prior in seen:
        torch.testing.assert_close(prior, initial, atol=1e-6, rtol=0)


def test_a_linear_schedule_takes_equal_parts_of_the_prior_bit_for_bit(tmp_path):
    """It equals ``prior.sub_(initial / steps)``, which the studies of the prior used."""
    module = small_module(router_prior="ordered", router_prior_strength=10.0, optimizer={"lr": 1e-2})
    initial = module.model.model.stages[0].ffn.router.prior.detach().clone()
    before, after = Priors(), Priors()
    fit(tmp_path, module, [before, Schedule("prior_strength", end=0.0, last_step=7), after], steps=7)
    for learned, left in list(zip(before.seen, after.seen, strict=True))[1::2]:
        assert torch.equal(left, learned - initial / 7)


@pytest.mark.parametrize(
    ("top_k", "at", "expected"),
    [(3, [1, 3], [1, 2, 2, 3]), (2, [2], [1, 1, 2, 2]), ("all", [2], [3, 3, 4, 4]), (2, None, [2] * 4)],
)
def test_each_step_has_its_k(tmp_path, top_k, at, expected):
    module, recorder = small_module(top_k=top_k), Recorder()
    full = 4 if top_k == "all" else top_k
    first = full - len(at or ())
    growth = [
        Schedule("top_k", first + index, first + index + 1, "step", begin, step)
        for index, (begin, step) in enumerate(zip([0, *(at or ())], at or (), strict=False))
    ] or [Schedule("top_k")]
    fit(tmp_path, module, [*growth, recorder], **VALIDATE_EACH_STEP)
    found = [out["routing"][0].ffn.selected.shape[-1] for out in recorder.train_outputs]
    assert found == [k for k in expected for _ in range(2)]
    assert [out["routing"][0].ffn.selected.shape[-1] for out in recorder.validation_outputs] == expected


def test_pools_of_different_k_grow_equally(tmp_path):
    module, recorder = small_module(top_k=2, ffn_top_k=3), Recorder()
    fit(tmp_path, module, [Schedule("top_k", start=1, curve="step", last_step=2), recorder])
    found = [
        (out["routing"][0].attention.selected.shape[-1], out["routing"][0].ffn.selected.shape[-1])
        for out in recorder.train_outputs[::2]
    ]
    assert found == [(1, 2), (1, 2), (2, 3), (2, 3)]


def test_temperature_divides_the_logits_and_ends_as_configured(tmp_path):
    module, recorder = small_module(temperature=0.2), Recorder()
    fit(tmp_path, module, [Schedule("temperature", start=1.0), recorder], **VALIDATE_EACH_STEP)
    assert all(router.temperature is None for router in module.modules() if isinstance(router, Router))
    batch = recorder.train_outputs[0]
    hot, cold = (small_module(temperature=temperature) for temperature in (1.0, 0.2))
    for first, wanted in ((hot, True), (cold, False)):
        with torch.no_grad():
            expected = first.model(token_batch(0)["input_ids"], output_routing=True).routing
        assert torch.equal(expected[0].attention.scores, batch["routing"][0].attention.scores) is wanted


def test_the_last_validation_has_the_configured_temperature(tmp_path):
    module, recorder = small_module(temperature=0.2), Recorder()
    fit(tmp_path, module, [Schedule("temperature", start=1.0), recorder], **VALIDATE_EACH_STEP)
    module.eval()
    with torch.no_grad():
        now = module.model(token_batch(0)["input_ids"], output_routing=True).routing
    for found, wanted in zip(recorder.validation_outputs[-1]["routing"], now, strict=True):
        assert torch.equal(found.ffn.scores, wanted.ffn.scores)


def test_fewer_rounds_are_the_model_with_fewer_rounds(tmp_path):
    module, recorder = small_module(num_rounds=3), Recorder()
    growth = Schedule("num_rounds", start=2, curve="step", last_step=2)
    fit(tmp_path, module, [growth, recorder], **VALIDATE_EACH_STEP)
    assert [len(out["routing"]) for out in recorder.train_outputs] == [2, 2, 2, 2, 3, 3, 3, 3]
    assert [len(out["routing"]) for out in recorder.validation_outputs] == [2, 2, 3, 3]
    assert module.model.config.num_rounds == 3


@pytest.mark.parametrize("changes", [{}, {"anchors": False}, {"num_stages": 2}])
def test_a_model_cut_to_fewer_rounds_computes_and_decodes_as_a_shorter_one(changes):
    shorter, longer = small_model(num_rounds=2, **changes), small_model(num_rounds=3, **changes)
    weights = {name: value for name, value in shorter.state_dict().items() if not name.endswith("prior")}
    longer.load_state_dict(weights, strict=False)
    module = small_module()
    module.model = longer
    SCALARS["num_rounds"].set(None, module, 2)
    ids = tokens(2, 6)
    assert torch.equal(longer(input_ids=ids).logits, shorter(input_ids=ids).logits)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(longer.generate(input_ids=ids, **options), shorter.generate(input_ids=ids, **options))
    assert longer.config.graph_depth == shorter.config.graph_depth


def test_a_coefficient_weighs_the_loss_of_each_step(tmp_path):
    module, recorder = small_module(balance_coefficient=0.5), Recorder()
    fit(tmp_path, module, [Schedule("balance_coefficient", start=0.0, last_step=2), recorder])
    for step, coefficient in enumerate([0.0, 0.25, 0.5]):
        logged = recorder.logged[2 * step + 1]
        added = coefficient * logged["train/balance_loss"]
        assert logged["train/routing_loss"] == pytest.approx(added, abs=1e-6)
    assert module.model.config.balance_coefficient == 0.5


def test_the_routers_learning_rate_follows_and_is_logged(tmp_path):
    module = small_module(optimizer={"lr": 1e-2, "router_lr_multiplier": 4.0, "schedule": "constant"})
    logger = CSVLogger(tmp_path, name="", version="")
    callbacks = [LearningRateMonitor("step"), Schedule("router_lr_multiplier", start=0.0, last_step=2)]
    fit(tmp_path, module, callbacks, steps=5, logger=logger)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    names = ("learning_rate/router_matrices", "learning_rate/matrices")
    found = [float(row[names[0]]) / float(row[names[1]]) for row in rows if row[names[0]]][::2]
    assert found == pytest.approx([0.0, 2.0, 4.0, 4.0, 4.0])


def test_constant_factors_train_as_configured_ones(tmp_path):
    results = []
    for multiplier, callbacks in (
        (4.0, []),
        (1.0, [Schedule("router_lr_multiplier", 4.0, curve="constant")]),
    ):
        module = small_module(optimizer={"router_lr_multiplier": multiplier})
        fit(tmp_path, module, callbacks)
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_compiled_model_is_not_compiled_again_as_temperature_and_noise_change():
    graphs = []
    model, ids = small_model().train(), tokens(2, 8)
    model.model.compile_layers(backend=lambda module, inputs: graphs.append(module) or module.forward)
    compiled = []
    for step in range(4):
        for router in model.modules():
            if isinstance(router, Router):
                router.set_temperature(1.0 - 0.1 * step)
                router.set_noise("gumbel", 1.0 - 0.1 * step)
        model(input_ids=ids, labels=ids)
        compiled.append(len(graphs))
    assert compiled == compiled[:1] * 4 and compiled[0] > 0
