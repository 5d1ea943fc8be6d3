"""Sweeps with real processes: jobs that fail, are killed, or are interrupted and resumed; invalid requests."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml

from mom.sweeps import grid
from mom.sweeps.jobs import Job
from tests.sweeps import program
from tests.sweeps.start import start_and_wait_until_blocked

CONF = program.ROOT / "conf"
GRIDS = {path.stem: yaml.safe_load(path.read_text())["params"] for path in (CONF / "sweep").glob("*.yaml")}

Launch = Callable[..., int]


def status(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "status.json").read_text())


def summary(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text())


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_failed_jobs_are_reported_and_rerun_but_finished_jobs_are_not(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("-m", "seed=1,2,6,7", "model.top_k=1", "hydra.sweep.dir=s") == 1

    printed = capsys.readouterr().out
    assert [status(f"s/{job}")["state"] for job in range(4)] == ["succeeded", "failed", "failed", "failed"]
    assert "s/0: seed=1 → output.txt\ns/0: succeeded, val/loss 1.0000\n" in printed
    failures = printed.partition("└")[2].splitlines()[1:4]
    assert failures == [
        "s/1: ZeroDivisionError: no way",
        "s/2: killed by SIGKILL: working",
        "s/3: UsageError: data.path must be an existing file, got x",
    ]
    assert "ZeroDivisionError: no\nway" in Path("s/1/output.txt").read_text()

    # Again, with the fault fixed, one more seed and two fewer: job numbers change, directories do not.
    ended_at = status("s/0")["time"]
    Path("fixed").touch()
    assert launch("-m", "seed=3,2,1", "model.top_k=1", "hydra.sweep.dir=s") == 0
    assert status("s/0")["time"] == ended_at
    assert [summary(f"s/{job}")["val/loss"] for job in (0, 1, 4)] == [1.0, 2.0, 3.0]
    assert yaml.safe_load(Path("s/4/config.yaml").read_text())["run_dir"] == "s/4"
    assert Path("s/0/output.txt").read_text() == "working\n"
    assert not Path("s/5").exists()


def test_a_killed_sweep_waits_for_its_remaining_job_and_resumes(launch: Launch) -> None:
    line = ("-m", "seed=1,8,3", "hydra.sweep.dir=s")
    sweep, job = start_and_wait_until_blocked(*line)
    sweep.kill()
    sweep.wait()
    assert [status("s/0")["state"], status("s/1")["state"], Path("s/2").exists()] == [
        "succeeded",
        "running",
        False,
    ]

    # The job outlived its sweep and would block the next sweep; see test_process.py.
    os.kill(job, signal.SIGKILL)
    assert launch(*line) == 0
    assert [summary(f"s/{number}")["resumed"] for number in range(3)] == [False, True, False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_running_job_and_starts_no_other(launch: Launch, number: int) -> None:
    line = ("-m", "seed=8,1", "hydra.sweep.dir=s")
    sweep, _ = start_and_wait_until_blocked(*line)
    sweep.send_signal(number)
    assert sweep.wait() == 128 + number
    assert status("s/0")["state"] == "interrupted"
    assert not Path("s/1").exists()

    assert launch(*line) == 0
    assert (summary("s/0")["resumed"], summary("s/1")["resumed"]) == (True, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["-m", "seed=1,1"], "jobs 0 and 1 of the sweep have the same configuration"),
        (["-m", "run_dir=x", "seed=1,2"], "run_dir must be null with -m, got x; "),
        (
            ["-m", "optimizer.lr=interval(0.1,1)"],
            "optimizer.lr must be comma-separated values, got interval(0.1,1)",
        ),
        (["-m", "model.d_model=128,15"], "model.d_model must be a multiple of num_heads (4), got 15"),
        (["-m", "sweep=top_k", "model.top_k=9"], "model.top_k must be between 1 and 5, "),
        (["sweep=top_k"], "the sweep over model.top_k requires the flag -m"),
        (["-m", "sweep=topk"], "sweep must be one of "),
        (["-m", "seed=1", "launcher=slrm"], "launcher must be one of "),
        (
            ["-m", "seed=range(0,1000000000)", "model.top_k=1,2"],
            "a sweep must have at most 10,000 jobs, got 2,000,000,000; search=random runs some of them",
        ),
    ],
)
def test_a_wrong_sweep_is_one_line_and_starts_nothing(
    launch: Launch, capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    assert launch(*line) == 2

    assert the_line(capsys).startswith(f"error: {message}")
    assert not any(Path().iterdir())


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_grid_is_every_combination_of_its_values(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    planned: list[Job] = []

    def run_jobs(jobs: list[Job], *_: object) -> int:
        planned.extend(jobs)
        return 0

    monkeypatch.setattr(grid, "run_jobs", run_jobs)
    assert launch("-m", f"sweep={name}", "seed=3") == 1  # every job was checked, and none has succeeded
    values = {option: str(listed).split(",") for option, listed in GRIDS[name].items()}
    assert len(planned) == prod(map(len, values.values()))
    wanted = {
        frozenset(["seed=3", *(f"{option}={value}" for option, value in zip(values, chosen, strict=True))])
        for chosen in product(*values.values())
    }
    assert {frozenset(job.overrides) for job in planned} == wanted
