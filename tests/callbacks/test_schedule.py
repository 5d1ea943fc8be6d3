"""Schedules: curves, resuming, logging, and errors."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import OmegaConf

from mom.callbacks import ExactResume, Schedule
from mom.callbacks.scalars import SCALARS
from mom.config.composition import composed, explain
from mom.errors import UsageError
from mom.model.routers.router import Router
from tests.helpers.models import small_config
from tests.helpers.runs import (
    CALLBACKS,
    SCHEDULE,
    FixedBatches,
    Recorder,
    plain_trainer,
    small_module,
    tiny_request,
    token_batch,
)
from tests.test_configs import CONF


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("constant", [1.0] * 6),
        ("linear", [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 1.0, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5), 0.0]),
        ("step", [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
    ],
)
def test_curves(curve, expected):
    schedule = Schedule("gumbel_noise", 1.0, 0.0, curve, first_step=1, last_step=5)
    assert [schedule.value(step, 10) for step in range(6)] == pytest.approx(expected)
    assert schedule.value(9, 10) == expected[-1]


def test_without_a_last_step_it_lasts_as_long_as_the_training():
    schedule = Schedule("gumbel_noise", 1.0, 0.0)
    assert [schedule.value(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_integers_are_rounded():
    schedule = Schedule("top_k", 1, 3, last_step=4)
    assert [schedule.value(step, 10) for step in range(6)] == [1, 2, 2, 3, 3, 3]


def test_the_value_is_logged_while_the_schedule_runs(tmp_path):
    recorder = Recorder()
    schedule = Schedule("gumbel_noise", 1.0, 0.5, first_step=1, last_step=3)
    trainer = plain_trainer(tmp_path, [schedule, recorder], max_steps=4, limit_val_batches=0)
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(seed) for seed in range(4)], []))
    found = [logged.get("schedule/gumbel_noise") for logged in recorder.logged]
    assert found == [None, 1.0, 0.75, 0.5]


def test_a_resumed_training_continues_bit_for_bit(tmp_path):
    def schedules() -> list[Schedule]:
        return [
            Schedule("temperature", 1.0, curve="cosine"),
            Schedule("gaussian_noise", 1.0, curve="linear"),
            Schedule("prior_strength", end=1.0, last_step=5),
            Schedule("top_k", 1, curve="step", last_step=4),
            Schedule("num_rounds", 1, last_step=5),
            Schedule("balance_coefficient", 0.0, 0.1),
            Schedule("router_lr_multiplier", 0.0, 2.0, "cosine"),
        ]

    class State(ModelCheckpoint):
        """Saves after step 3."""

    def trainer(folder):
        keep = State(folder, filename="at-{step}", every_n_train_steps=3, save_top_k=-1)
        return plain_trainer(
            folder,
            [*schedules(), ExactResume(), keep],
            max_steps=6,
            limit_val_batches=0,
            enable_checkpointing=True,
        )

    batches = [token_batch(seed) for seed in range(6)]
    full, resumed = (small_module(router_prior="ordered", top_k=2, num_rounds=3) for _ in range(2))
    trainer(tmp_path / "whole").fit(full, datamodule=FixedBatches(batches, []))
    trainer(tmp_path / "resumed").fit(
        resumed,
        datamodule=FixedBatches(batches[3:] * 2, []),
        ckpt_path=tmp_path / "whole" / "at-step=3.ckpt",
    )
    assert all((value == resumed.state_dict()[name]).all() for name, value in full.state_dict().items())


class StopAt(Callback):
    """Raises after ``step`` optimizer steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise RuntimeError("stopped")


@pytest.mark.parametrize("stop", [None, 2])
def test_the_configured_values_return_wherever_the_schedules_end(tmp_path, stop):
    module = small_module(balance_coefficient=0.25, num_rounds=3)
    schedules = [
        Schedule("balance_coefficient", 0.0, 1.0),
        Schedule("gaussian_noise", 2.0, curve="constant"),
        Schedule("temperature", 1.0, last_step=3),
        Schedule("num_rounds", 1, curve="step", last_step=3),
    ]
    callbacks = schedules if stop is None else [*schedules, StopAt(stop)]
    trainer = plain_trainer(tmp_path, callbacks, max_steps=4, limit_val_batches=0)
    data = FixedBatches([token_batch(seed) for seed in range(4)], [])
    with nullcontext() if stop is None else pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(module, datamodule=data)
    assert (module.model.config.balance_coefficient, module.model.config.num_rounds) == (0.25, 3)
    routers = [part for part in module.modules() if isinstance(part, Router)]
    assert {(router.noise_kind, router.temperature) for router in routers} == {(None, None)}


def test_a_plain_transformer_has_nothing_to_schedule(tmp_path):
    recorder = Recorder()
    schedule = Schedule("temperature", 1.0)
    trainer = plain_trainer(tmp_path, [schedule, recorder], max_steps=1, limit_val_batches=0)
    trainer.fit(small_module(num_stages=0), datamodule=FixedBatches([token_batch(0)], []))
    assert not any(name.startswith("schedule/") for name in recorder.logged[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "temprature"},
            "name must be one of temperature, .*got temprature; did you mean temperature",
        ),
        (
            {"name": "temperature", "curve": "sine"},
            "curve must be one of constant, linear, cosine, step, got sine",
        ),
        ({"name": "temperature", "start": 0.0}, "start must be a number above 0, got 0"),
        ({"name": "gumbel_noise", "start": -1.0}, "start must be a number of at least 0, got -1"),
        ({"name": "gumbel_noise", "start": math.inf}, "start must be a number of at least 0, got inf"),
        ({"name": "temperature", "end": math.nan}, "end must be a number above 0, got nan"),
        ({"name": "top_k", "start": math.inf}, "start must be an integer of at least 1, got inf"),
        ({"name": "top_k", "start": math.nan}, "start must be an integer of at least 1, got nan"),
        ({"name": "top_k", "start": 1.5}, "start must be an integer of at least 1, got 1.5"),
        ({"name": "top_k", "end": 0}, "end must be an integer of at least 1, got 0"),
        ({"name": "gumbel_noise", "first_step": -1}, "first_step must be at least 0, got -1"),
        ({"name": "prior_strength", "last_step": 0}, r"last_step must be above first_step \(0\), got 0"),
    ],
)
def test_invalid_arguments_are_rejected(given, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**given)


@pytest.mark.parametrize(
    ("schedule", "changes", "message"),
    [
        (
            Schedule("gumbel_noise", 1.0),
            {"router": "random"},
            "name=gumbel_noise requires a router that learns",
        ),
        (
            Schedule("temperature", 1.0),
            {"router": "sequential"},
            "name=temperature requires a router that learns",
        ),
        (
            Schedule("prior_strength", end=0.0),
            {"router_prior": "none"},
            "requires a learned router.router_prior",
        ),
        (
            Schedule("prior_strength", end=0.0),
            {"router_prior": "hashed"},
            "requires a learned router.router_prior",
        ),
        (
            Schedule("prior_strength", 1.0, 0.0),
            {"router_prior": "ordered", "router_prior_strength": 2.0},
            "start must be 2, the model's configured value, got 1",
        ),
        (Schedule("top_k", 3), {}, "start must be at most 2, got 3"),
        (Schedule("top_k", 2, 1), {}, "end must be 2, the model's configured value"),
        (
            Schedule("top_k", 1, curve="step", last_step=10),
            {},
            "last_step must let top_k reach 2 before the last",
        ),
        (Schedule("temperature", 1.0, last_step=11), {}, "last_step must let temperature reach"),
        (Schedule("temperature", 1.0, curve="constant"), {}, "end must be"),
        (Schedule("gumbel_noise", 1.0, first_step=10), {}, "first_step must be below 10"),
    ],
)
def test_schedules_that_do_not_fit_the_model_or_the_training_are_rejected(schedule, changes, message):
    with pytest.raises(ValueError, match=message):
        schedule.check_fits(small_config(**changes), 10)
    schedule.check_fits(small_config(num_stages=0), 5)


def test_only_the_last_of_several_schedules_ends_as_configured():
    first, second = Schedule("top_k", 1, 2, "step", 0, 3), Schedule("top_k", 2, 3, "step", 3, 6)
    config = small_config(top_k=3)
    for schedule in (first, second):
        schedule.check_fits(config, 10, [first, second])
    with pytest.raises(ValueError, match="end must be 3"):
        first.check_fits(config, 10, [second, first])


def test_a_request_is_rejected_before_anything_is_trained(tmp_path):
    growth = SCHEDULE | {"name": "top_k", "start": 1, "curve": "step", "last_step": 6}
    config = tiny_request(tmp_path, callbacks=CALLBACKS | {"top_k": growth})
    with pytest.raises(UsageError) as error:
        config.check_buildable()
    assert str(error.value) == (
        "callbacks.top_k.last_step must let top_k reach 2 before the last of 6 steps, got 6"
    )
    config = tiny_request(tmp_path, callbacks=CALLBACKS | {"noise": SCHEDULE | {"name": "nose"}})
    with pytest.raises(UsageError, match=r"^callbacks\.noise\.name must be one of .*, got nose"):
        config.check_buildable()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["callbacks.router_noise.scale=2.0", "callbacks.router_noise.steps=500"],
            "callbacks.router_noise is now a schedule; "
            "use callbacks.gumbel_noise.start=2.0 callbacks.gumbel_noise.last_step=500",
        ),
        (
            ["callbacks.router_noise.kind=gaussian"],
            "callbacks.router_noise is now a schedule; use callbacks.gaussian_noise.start=1.0",
        ),
        (
            ["callbacks.router_prior_decay.steps=250"],
            "callbacks.router_prior_decay is now a schedule; "
            "use callbacks.prior_strength.end=0 callbacks.prior_strength.last_step=250",
        ),
        (
            ["callbacks.top_k_growth.at=[500]"],
            "callbacks.top_k_growth is now a schedule; use callbacks.top_k.start=<top_k - 1> "
            "callbacks.top_k.curve=step callbacks.top_k.last_step=500",
        ),
        (
            ["callbacks.top_k_growth.at=[100,200]"],
            "callbacks.top_k_growth is now a schedule; use callbacks.top_k.start=<top_k - 2> "
            "callbacks.top_k.end=<top_k - 1> callbacks.top_k.curve=step callbacks.top_k.last_step=100 "
            "'+callbacks.top_k_2={_target_: mom.callbacks.Schedule, name: top_k, start: <top_k - 1>, end: null, "
            "curve: step, first_step: 100, last_step: 200}'",
        ),
    ],
)
def test_an_error_for_an_old_option_names_the_new_option(overrides, message):
    with pytest.raises(Exception) as error:
        composed(CONF, overrides)
    assert str(explain(error.value, CONF, overrides)) == message


def test_an_error_for_an_old_node_names_the_new_node(tmp_path):
    noise = {"_target_": "mom.callbacks.RouterNoise", "scale": 1.0, "steps": 4}
    with pytest.raises(UsageError, match=r"use callbacks\.gumbel_noise\.start=1\.0 .*last_step=4"):
        tiny_request(tmp_path, callbacks=CALLBACKS | {"mine": noise})


def test_the_default_nodes_name_scalars():
    nodes = OmegaConf.load(CONF / "callbacks" / "default.yaml")
    names = {
        name: node["name"] for name, node in nodes.items() if node["_target_"] == "mom.callbacks.Schedule"
    }
    assert len(names) >= 8
    assert all(name == key and name in SCALARS for key, name in names.items())
