"""Optimizers and schedulers by class: where the class may come from, and which arguments it takes."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from mom.config import AdafactorConfig, MuonConfig, OptimizerConfig, bind, optimizer_section
from mom.errors import UsageError
from tests.helpers.runs import tiny_request

SGD = {"_target_": "torch.optim.SGD", "momentum": 0.9}
STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}


@pytest.mark.parametrize(
    ("given", "section"),
    [
        ({}, OptimizerConfig),
        ({"_target_": "torch.optim.AdamW", "eps": 1e-8}, OptimizerConfig),
        ({"_target_": "torch.optim.Muon", "ns_steps": 3}, MuonConfig),
        ({"_target_": "torch.optim.Adafactor", "eps": [None, 1e-3]}, AdafactorConfig),
    ],
)
def test_the_class_selects_the_section(given: dict[str, Any], section: type) -> None:
    made = optimizer_section(given)

    assert type(made) is section
    assert optimizer_section(dataclasses.asdict(made)) == made
    made.check_buildable()


def test_any_other_class_takes_its_own_arguments() -> None:
    made = optimizer_section({**SGD, "lr": 0.1})

    assert made.arguments == {"momentum": 0.9}
    assert optimizer_section(dataclasses.asdict(made)) == made
    made.check_buildable()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"_target_": None}, "optimizer=torch requires optimizer._target_: a class, such as torch.optim.SGD"),
    (
        {"_target_": "os.system"},
        "optimizer._target_ must be a class of torch.optim or of a plugin (plugins=[os]), got os.system",
    ),
    ({"_target_": "torch.optim.SGDD"}, "cannot import optimizer._target_ torch.optim.SGDD: "),
    ({**SGD, "momentum": -1.0}, "cannot build optimizer with momentum=-1.0: Invalid momentum"),
    (
        {"_target_": "torch.optim.lr_scheduler.StepLR"},
        "optimizer._target_ must be a class derived from torch.optim",
    ),
    (
        {"_target_": "torch.optim.LBFGS"},
        "optimizer._target_ cannot be torch.optim.LBFGS: it has no parameter groups",
    ),
    ({**SGD, "momentum": "much"}, "optimizer.momentum must be a number, got much"),
    ({**SGD, "momentun": 0.9}, "unknown option optimizer.momentun; did you mean optimizer.momentum?"),
    ({**SGD, "betas": [0.9, 0.99]}, "optimizer.betas cannot be combined with torch.optim.SGD"),
    ({"_target_": "torch.optim.Rprop"}, "optimizer.weight_decay must be 0 with torch.optim.Rprop"),
    (
        {"scheduler": STEP},
        "optimizer.scheduler replaces the whole schedule, so optimizer.warmup_steps must be 0, got 30",
    ),
    (
        {"scheduler": {"step_size": 2}},
        "optimizer.scheduler._target_ must be the dotted path of a class, got null",
    ),
    (
        {"warmup_steps": 0, "scheduler": {"_target_": "subprocess.Popen", "args": "ls"}},
        "optimizer.scheduler._target_ must be a class of torch.optim or of a plugin",
    ),
    (
        {"warmup_steps": 0, "scheduler": {**STEP, "gama": 0.5}},
        "unknown option optimizer.scheduler.gama; did you mean optimizer.scheduler.gamma?",
    ),
    (
        {"warmup_steps": 0, "scheduler": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}},
        "optimizer.scheduler._target_ cannot be torch.optim.lr_scheduler.ReduceLROnPlateau",
    ),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_cannot_train_is_refused_before_any_work(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        optimizer_section(given).check_buildable()

    assert str(raised.value).startswith(message)


def test_an_optimizer_of_a_plugin_can_be_used_once_it_is_imported(tmp_path, monkeypatch) -> None:
    module = ModuleType("their_optimizers")
    module.Lion = type("Lion", (torch.optim.SGD,), {"__module__": module.__name__})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    chosen = {"optimizer": {"_target_": "their_optimizers.Lion"}}
    with pytest.raises(UsageError, match=r"or of a plugin \(plugins=\[their_optimizers\]\)"):
        bind({**chosen, "run_dir": str(tmp_path)})
    bind({**chosen, "plugins": ["their_optimizers"], "run_dir": str(tmp_path)}).optimizer.check_buildable()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("LearningRateFinder", "the run's learning rate would not be the one that it records"),
        ("BatchSizeFinder", "the run's batch size would not be the one that it records"),
        ("StochasticWeightAveraging", "it replaces the learning-rate schedule; use callbacks=ema"),
    ],
)
def test_tuners_of_lightning_are_refused_by_name(tmp_path, target: str, reason: str) -> None:
    node = {"_target_": f"lightning.pytorch.callbacks.{target}"} | (
        {"swa_lrs": 0.1} if "Avera" in target else {}
    )
    config = tiny_request(tmp_path, callbacks={"tuner": node})
    with pytest.raises(UsageError, match=rf"^callbacks.tuner cannot be {target}: {reason}"):
        config.check_buildable()


def test_a_schedule_of_the_routers_rate_and_a_scheduler_exclude_each_other(tmp_path) -> None:
    node = {"_target_": "mom.callbacks.Schedule", "name": "router_lr_multiplier", "start": 0.5}
    config = tiny_request(
        tmp_path, callbacks={"rate": node}, optimizer={"warmup_steps": 0, "scheduler": STEP}
    )
    with pytest.raises(UsageError, match=r"^callbacks.rate cannot be combined with optimizer.scheduler"):
        config.check_buildable()


def test_muon_and_shards_exclude_each_other(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"^optimizer=muon cannot be combined with trainer=fsdp"):
        tiny_request(tmp_path, optimizer={"_target_": "torch.optim.Muon"}, trainer={"strategy": "fsdp"})
