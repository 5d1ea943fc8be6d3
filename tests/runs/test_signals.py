"""Interrupts and signals: what a run records, and the exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mom.config import RunConfig
from mom.runs.directory import RunDirectory
from mom.runs.signals import SIGNALS
from tests.helpers.command_line import SMALL, Task, by_key, status


def as_lightning_does(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Lightning's Trainer turns Ctrl-C into SystemExit(1)."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("task", [by_key, as_lightning_does])
def test_an_interrupt_is_recorded(launch: Callable[..., int], task: Task) -> None:
    assert launch("run_dir=here", *SMALL, task=task) == 130
    assert status("here")["state"] == "interrupted"


def send(number: int) -> Task:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        signal.raise_signal(number)
        raise AssertionError("the signal was not heard")

    return task


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_is_recorded_and_its_number_is_in_the_exit_code(
    launch: Callable[..., int], number: int
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    assert launch("run_dir=here", *SMALL, task=send(number)) == 128 + number
    assert status("here")["state"] == "interrupted"
    assert not Path("here/run.lock").exists()


def test_a_signal_before_the_task_is_recorded(
    launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunDirectory.status

    def then_stopped(self: RunDirectory, now: Any, error: Any = None) -> None:
        record(self, now, error)
        if now == "running":
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(RunDirectory, "status", then_stopped)
    assert launch("run_dir=here", *SMALL) == 128 + signal.SIGUSR1
    assert status("here")["state"] == "interrupted"


def test_what_is_ignored_stays_ignored_and_sigterm_still_ends_the_run(launch: Callable[..., int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
        return send(signal.SIGTERM)(config, run)

    assert launch("run_dir=here", *SMALL, task=task) == 143
    assert status("here")["state"] == "interrupted"


def test_an_exit_that_is_no_interrupt_passes(launch: Callable[..., int]) -> None:
    def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
        sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        launch("run_dir=here", *SMALL, task=task)


@pytest.mark.parametrize("state", ["succeeded", "failed", "interrupted"])
def test_a_signal_after_the_end_changes_nothing(
    launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    record = RunDirectory.status

    def while_recording(self: RunDirectory, now: Any, error: Any = None) -> None:
        if now == state:
            for number in SIGNALS:
                signal.raise_signal(number)
        record(self, now, error)

    monkeypatch.setattr(RunDirectory, "status", while_recording)
    ends: dict[str, tuple[int, Task]] = {
        "succeeded": (0, lambda config, run: {}),
        "failed": (1, lambda config, run: {"x": 1 / 0}),
        "interrupted": (143, send(signal.SIGTERM)),
    }
    code, task = ends[state]
    assert launch("run_dir=here", *SMALL, task=task) == code
    assert status("here")["state"] == state
