"""Steps with a non-finite gradient are stopped or skipped, and the message names the cause."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from mom.callbacks import BalanceBias, ExactResume, NonFinite, Schedule
from mom.callbacks.non_finite import MAX_SKIPPED_IN_A_ROW, NonFiniteError
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


class Break(Callback):
    """Makes a module's output non-finite in given training batches, or multiplies a gradient."""

    def __init__(self, batches: set[int], gradient: float | None = None) -> None:
        self.batches, self.gradient, self.batch = batches, gradient, -1

    def on_fit_start(self, trainer, pl_module) -> None:
        part = pl_module.model.model.stages[0].ffn
        if self.gradient:
            factor = self.gradient
            part.pool.fc_weight.register_hook(lambda g: g * factor if self.batch in self.batches else g)
        else:
            part.register_forward_hook(
                lambda _, __, output: output * float("nan") if self.batch in self.batches else None
            )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batch = batch_idx


class Weights(Callback):
    """Records a weight after every micro-batch."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.seen.append(pl_module.model.model.norm.weight.detach().clone())


def fit(tmp_path, callbacks, batches: int = 6, **options) -> None:
    data = FixedBatches([token_batch(seed) for seed in range(batches)], [])
    trainer = plain_trainer(
        tmp_path,
        callbacks,
        max_steps=batches,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        **options,
    )
    trainer.fit(small_module(optimizer={"warmup_steps": 0}), datamodule=data)


def test_stop_names_the_step_the_rank_and_the_module_and_leaves_the_weights(tmp_path):
    weights = Weights()
    with pytest.raises(NonFiniteError) as error:
        fit(tmp_path, [Break({3}), NonFinite("stop"), weights], accumulate_grad_batches=2)
    assert str(error.value).startswith(
        "step 2: the loss is not finite; rank 0: first in the output of model.model.stages.0.ffn;"
    )
    assert len(weights.seen) == 3 and all(weight.isfinite().all() for weight in weights.seen)


def test_a_gradient_that_alone_is_not_finite_is_named_by_its_parameter(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 2: the gradient is not finite.*stages\.0\.ffn\.pool"):
        fit(tmp_path, [Break({1}, gradient=float("inf")), NonFinite("stop")])


def test_a_finite_gradient_whose_norm_overflows_is_named_by_its_largest_value(tmp_path):
    message = r"step 2: the norm of the gradient overflows, with values up to \de\+\d\d at .*\.ffn\.pool\.fc_weight;"
    with pytest.raises(NonFiniteError, match=message):
        fit(tmp_path, [Break({1}, gradient=1e25), NonFinite("stop")])


def test_skip_continues_without_the_step(tmp_path, caplog):
    weights = Weights()
    with caplog.at_level(logging.WARNING, "mom"):
        fit(tmp_path, [Break({2, 3}), NonFinite("skip"), weights])
    seen = weights.seen
    assert torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[3], seen[4])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["step 3", "step 4"]


def test_skipping_forever_is_an_error(tmp_path):
    with pytest.raises(
        NonFiniteError, match=f"step {MAX_SKIPPED_IN_A_ROW}: .*{MAX_SKIPPED_IN_A_ROW} steps in a row"
    ):
        fit(tmp_path, [Break(set(range(99))), NonFinite("skip")], batches=MAX_SKIPPED_IN_A_ROW + 5)


def test_another_action_is_rejected():
    with pytest.raises(ValueError, match="action must be stop or skip, got ignore"):
        NonFinite("ignore")


class State(Callback):
    """Records the model's parameters and buffers, and the random state, after every micro-batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        state = {name: value.clone() for name, value in pl_module.model.state_dict().items()}
        self.seen.append(state | {"random": torch.get_rng_state()})


CONSTANT = {"warmup_steps": 0, "schedule": "constant"}
ROUTED = {"router_prior": "ordered", "router_prior_strength": 2.0, "balance_bias_rate": 0.05}


def train(folder, seeds, callbacks, optimizer=CONSTANT, model=None, ckpt_path=None, **options):
    """Train a small model that balances by biases on batches of these seeds, and return its trainer."""
    module = small_module(optimizer=optimizer, **(ROUTED | (model or {})))
    data = FixedBatches([token_batch(seed) for seed in seeds], [])
    defaults = {"max_steps": len(seeds), "limit_val_batches": 0, "gradient_clip_val": 1.0}
    trainer = plain_trainer(folder, [*callbacks, BalanceBias()], **(defaults | options))
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_skipping_a_step_equals_training_without_its_batches(tmp_path):
    accumulated = {"accumulate_grad_batches": 2, "max_steps": 4}
    poisoned = [Break({3}), NonFinite("skip")]
    found = train(tmp_path, range(8), poisoned, **accumulated)
    expected = train(tmp_path, [0, 1, 4, 5, 6, 7], [], **(accumulated | {"max_steps": 3}))
    assert_equal(found.model.model.state_dict(), expected.model.model.state_dict())
    moments, wanted = (trainer.optimizers[0].state_dict()["state"] for trainer in (found, expected))
    for number, state in wanted.items():
        assert_equal(moments[number], state)


def test_a_skipped_step_moves_no_prior_and_the_next_step_catches_up(tmp_path):
    state = State()
    callbacks = [Schedule("prior_strength", end=0.0, last_step=4), Break({1}), NonFinite("skip"), state]
    # With a learning rate of 0 only the schedule moves the routers.
    train(tmp_path, range(6), callbacks, CONSTANT | {"router_lr_multiplier": 0.0})
    name = "model.stages.0.ffn.router.prior"
    initial = small_module(**ROUTED).model.state_dict()[name]
    priors = [seen[name] for seen in state.seen]
    assert torch.equal(priors[1], priors[0])
    for prior, share in zip(priors, [0.75, 0.75, 0.25, 0, 0, 0], strict=True):
        torch.testing.assert_close(prior, initial * share)


def test_finding_the_cause_draws_no_random_numbers(tmp_path):
    poisoned, sound = State(), State()
    for state, broken in ((poisoned, {1}), (sound, set())):
        train(tmp_path, range(3), [Break(broken), NonFinite("skip"), state], model={"dropout": 0.5})
    for found, expected in zip(poisoned.seen, sound.seen, strict=True):
        assert torch.equal(found["random"], expected["random"])


def test_a_run_resumed_after_a_skipped_step_equals_the_uninterrupted_run(tmp_path):
    def callbacks():
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        return [Schedule("prior_strength", end=0.0, last_step=4), NonFinite("skip"), ExactResume(), keep]

    whole = train(tmp_path, range(5), [Break({1}), *callbacks()], {}, enable_checkpointing=True)
    options = {"max_steps": 5, "enable_checkpointing": True, "ckpt_path": tmp_path / "step=2.ckpt"}
    resumed = train(tmp_path, [2, 3, 4] * 2, callbacks(), {}, **options)
    assert_equal(resumed.model.model.state_dict(), whole.model.model.state_dict())


def test_a_step_that_the_loss_scaler_skips_moves_nothing_either(tmp_path):
    state = State()
    scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    train(
        tmp_path,
        range(1),
        [Schedule("prior_strength", end=0.0), state],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    found = state.seen[0]
    assert_equal(
        {name: found[name] for name in found if name != "random"}, small_module(**ROUTED).model.state_dict()
    )
