"""Requests: binding, and checks across groups."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from mom.config import NodeConfig, RunConfig, bind
from mom.errors import UsageError
from mom.model.options import kind_options, options_of

SMALL = {"d_model": 16, "num_heads": 2, "max_positions": 32}


def request(**changes: Any) -> dict[str, Any]:
    return {"run_dir": "somewhere", "model": SMALL, "data": {"sequence_length": 32}, **changes}


def error_message(action: Any) -> str:
    with pytest.raises(UsageError) as raised:
        action()
    return str(raised.value)


def test_an_empty_request_has_every_default() -> None:
    config = bind({"run_dir": "somewhere"})

    assert (config.seed, config.debug, config.init, config.run_dir) == (0, False, None, "somewhere")
    assert config.task.name == "pretrain"
    assert config.callbacks == {}


def test_interpolations_are_resolved() -> None:
    config = bind(OmegaConf.create({"run_dir": "x", "seed": 3, "task": {"plain_steps": "${seed}"}}))

    assert config.task.plain_steps == 3


def test_nodes_are_read_and_null_nodes_omitted() -> None:
    node = {"_target_": "a.B", "count": 1}
    config = bind(request(callbacks={"one": node, "two": None}))

    assert config.callbacks == {"one": NodeConfig("callbacks.one", "a.B", {"count": 1})}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": 1}, "unknown option sed; did you mean seed?"),
        ({"seed": -1}, "seed must be between 0 and "),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"resume": "yes"}, "resume must be auto or null, got yes"),
        ({"debug": "no"}, "debug must be true or false, got no"),
        ({"run_dir": ""}, "run_dir"),
        ({"init": "a", "ckpt": "b"}, "init cannot be combined with ckpt"),
        ({"ckpt": "b", "resume": "auto"}, "ckpt cannot be combined with resume=auto"),
        ({"model": 3}, "model must be a group of options, got 3"),
        ({"model": {"topk": 2}}, "unknown option model.topk; did you mean model.top_k?"),
        ({"model": {"d_model": "abc"}}, "model.d_model must be an integer, got abc"),
        ({"model": {"temperature": 1.0}}, "unknown option model.temperature"),
        (
            {"router": {"temperatures": 1}},
            "unknown option router.temperatures; did you mean router.temperature?",
        ),
        ({"callbacks": {"x": 1}}, "callbacks.x must be null or "),
        ({"seed": "${nope}"}, "cannot resolve seed: Interpolation key 'nope' not found"),
        ({"seed": "???"}, "cannot resolve seed: "),
    ],
)
def test_an_invalid_request_is_rejected(changes: dict[str, Any], message: str) -> None:
    assert error_message(lambda: bind(request(**changes))).startswith(message)


@pytest.mark.parametrize(
    ("model", "router", "message"),
    [
        ({"d_model": 15}, {}, "model.d_model must be a multiple of num_heads (2), got 15"),
        ({"top_k": 6}, {}, "model.top_k must be between 1 and 5"),
        ({"num_rounds": 0}, {}, "model.num_rounds must be "),
        ({}, {"router": "gruu"}, "router.router must be one of embedding, gru, "),
        ({}, {"temperature": 0}, "router.temperature must be "),
        (
            {"top_k": 1},
            {"normalize_weights": True},
            "router.normalize_weights must be auto or false with a top_k of 1",
        ),
        (
            {"max_positions": 16},
            {},
            "data.sequence_length must be at most model.max_positions (16), got 32",
        ),
    ],
)
def test_an_invalid_model_is_rejected_by_its_option(
    model: dict[str, Any], router: dict[str, Any], message: str
) -> None:
    wanted = request(model={**SMALL, **model}, router=router)

    assert error_message(lambda: bind(wanted).check_buildable()).startswith(message)


def test_one_choice_may_be_renormalized_where_no_router_learns() -> None:
    router = {"router": "sequential", "router_prior": "none", "normalize_weights": True}

    bind(request(model={**SMALL, "top_k": 1}, router=router)).check_buildable()


def test_the_vocabulary_size_defaults_to_the_tokenizers() -> None:
    assert bind(request()).model_config(300).vocab_size == 300
    larger = bind(request(model={**SMALL, "vocab_size": 512}))
    assert larger.model_config(300).vocab_size == 512
    assert error_message(lambda: larger.model_config(600)).startswith(
        "model.vocab_size must be null or at least 600"
    )


def test_router_options_reach_the_model() -> None:
    config = bind(request(router={"router": "mlp", "temperature": 0.5})).model_config(300)

    assert (config.router, config.temperature, config.d_model) == ("mlp", 0.5, 16)


def test_every_model_and_router_option_is_a_field_of_the_model() -> None:
    from mom.model import MoMConfig

    fields = {field.name for field in dataclasses.fields(MoMConfig)}

    model, router = (set(options_of(group)) for group in ("model", "router"))
    assert (model | router) - {"pools", *kind_options()} <= fields
    assert not model & router


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"strategy": "dpp"}, "trainer.strategy must be one of "),
        ({"accelerator": "tpu"}, "trainer.accelerator must be auto"),
    ],
)
def test_what_this_machine_lacks_is_rejected(trainer: dict[str, Any], message: str) -> None:
    config = bind(request(trainer=trainer))

    assert error_message(config.check_buildable).startswith(message)


def test_more_devices_than_there_are_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.accelerators import CUDAAccelerator

    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 2))
    bind(request(trainer={"accelerator": "gpu", "devices": 2})).check_buildable()
    config = bind(request(trainer={"accelerator": "gpu", "devices": 3}))

    assert error_message(config.check_buildable).startswith("trainer.devices must be at most 2, ")


def test_callbacks_are_checked_against_their_classes() -> None:
    node = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "mode": "least"}
    config = bind(request(callbacks={"checkpoint": node}))

    assert error_message(config.check_buildable).startswith(
        "cannot build callbacks.checkpoint with mode=least: "
    )


def test_a_request_is_frozen() -> None:
    config: RunConfig = bind(request())

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_binding_imports_no_heavy_library() -> None:
    code = (
        "import sys, mom, mom.config\n"
        "mom.config.bind({'run_dir': 'x', 'model': {'d_model': 16, 'num_heads': 2}})\n"
        "print([name for name in ('torch', 'lightning', 'transformers') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"
