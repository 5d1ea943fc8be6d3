"""What a request asks of this machine is checked before anything is started."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mom.config import bind, machine
from mom.config.launcher import JoblibConfig
from mom.errors import UsageError
from mom.sweeps.launchers import check_launcher
from tests.config.test_request import error_message, request

NO_HALF = {"float16": 20.0, "bfloat16": 0.5}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"data": {"num_workers": 1000, "sequence_length": 32}},
            "data.num_workers must be at most 16 on this machine of 2 cores, got 1000",
        ),
        (
            {"data": {"num_processes": 1000, "sequence_length": 32}},
            "data.num_processes must be at most 16 on this machine of 2 cores, got 1000",
        ),
        (
            {"trainer": {"accelerator": "cpu", "devices": 1000}},
            "trainer.devices must be auto or between 1 and 16 on the CPU, got 1000",
        ),
        (
            {"trainer": {"accelerator": "cpu", "devices": "1000"}},
            "trainer.devices must be auto or between 1 and 16 on the CPU, got 1000",
        ),
        (
            {"trainer": {"accelerator": "cpu", "devices": [0, 1]}},
            "trainer.devices must be auto or between 1 and 16 on the CPU, got [0, 1]",
        ),
    ],
)
def test_more_processes_than_the_machine_can_run_are_rejected(groups: dict[str, Any], message: str) -> None:
    assert error_message(bind(request(**groups)).check_buildable) == message


def test_many_processes_are_accepted_where_there_are_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    bind(request(data={"num_workers": 256, "sequence_length": 32})).check_buildable()


def test_more_parallel_jobs_than_the_machine_can_run_are_rejected() -> None:
    with pytest.raises(
        UsageError, match=r"^launcher\.num_workers must be at most 16 on this machine of 2 cores, got 1000$"
    ):
        check_launcher(JoblibConfig(name="joblib", num_workers=1000))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "16-mixed", "64-true", "32-true"])
def test_a_precision_that_the_cpu_emulates_is_rejected(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's product in float16 is a plain loop on CPUs without instructions for it: a step took minutes."""
    monkeypatch.setattr(machine, "_slowdown", NO_HALF.__getitem__)
    config = bind(request(trainer={"accelerator": "cpu", "precision": precision}))
    if precision != "16-true":
        config.check_buildable()
        return
    assert error_message(config.check_buildable) == (
        "trainer.precision=16-true requires a GPU: this CPU multiplies matrices 20 times slower in float16 than in "
        "float32; choose 32-true"
    )


def test_the_speed_of_a_precision_is_measured() -> None:
    assert 0.01 < machine._slowdown("bfloat16") < 10_000
