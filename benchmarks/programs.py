"""The whole program in processes of its own: its start, and the jobs of a sweep."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from benchmarks.report import Measured
from benchmarks.timing import timed
from mom.runs.directory import STATUS, read_request, read_summary

PROGRAM = Path(__file__).resolve().parents[1] / "run.py"
UNTIL_FIRST_STEP = "+callbacks.exit._target_=benchmarks.programs.ExitAfterStep"


class ExitAfterStep(Callback):
    """Ends the process after the first training step, without cleaning up."""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        os._exit(0)


def start(*arguments: str, code: int = 0, repeats: int = 3) -> Measured:
    """Measure the seconds of the program with these arguments and exit code, after a run that fills its caches."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed({"program": lambda: _run(folder, *arguments, code=code)}, repeats)
    return Measured.of(seconds["program"], seconds)


def sweep(*overrides: str, jobs: int = 5, steps: int = 5) -> Measured:
    """Measure the seconds of a sweep's job outside its own training, for jobs after the first.

    A job takes from the end of the job before, when that wrote ``status.json``, to its own: it forks, composes, builds,
    trains, validates one batch, saves, draws its figures. Its training is its tokens divided by the
    ``throughput/tokens_per_second`` of its summary, so what the first step takes longer counts as outside.
    """
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed={','.join(map(str, range(jobs)))}"
        options = (f"trainer.max_steps={steps}", "trainer.limit_val_batches=1", "hydra.sweep.dir=sweep")
        _run(folder, "-m", seeds, *options, *overrides)
        folders = [Path(folder) / "sweep" / str(job) for job in range(jobs)]
        ends = [(job / STATUS).stat().st_mtime for job in folders]
        training = [_training_seconds(job) for job in folders[1:]]
    totals = [end - before for before, end in itertools.pairwise(ends)]
    outside = [total - inside for total, inside in zip(totals, training, strict=True)]
    return Measured.of(outside, {"total": totals, "training": training})


def _training_seconds(job: Path) -> float:
    request, summary = read_request(job), read_summary(job)
    assert request is not None, f"{job} has no request"
    tokens = summary["steps"] * request["data"]["batch_size"] * request["data"]["sequence_length"]
    return tokens / summary["throughput/tokens_per_second"]


def _run(folder: str, *arguments: str, code: int = 0) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"exit code {done.returncode}: {done.stderr or done.stdout}"
