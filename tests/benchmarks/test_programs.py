"""The rows on whole programs: their start, and the time of a sweep's job outside its training."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import programs
from mom.config import bind
from mom.config.composition import composed


def test_a_start_takes_the_time_of_the_program():
    found = programs.start("--help", repeats=2)
    assert len(found.seconds["program"]) == 2 and found.value > 0.01


def test_a_program_that_ends_otherwise_is_an_error():
    with pytest.raises(AssertionError, match="exit code 0"):
        programs.start("--help", code=2)


def test_the_first_step_ends_the_process(monkeypatch):
    ended = []
    monkeypatch.setattr(programs.os, "_exit", ended.append)
    conf = programs.PROGRAM.parent / "conf"
    callbacks = bind(composed(conf, [programs.UNTIL_FIRST_STEP])).callbacks
    callbacks["exit"].instantiate().on_train_batch_end(None, None, None, None, 0)
    assert ended == [0]


def test_a_job_takes_what_its_training_does_not(monkeypatch):
    def run(folder: str, *arguments: str) -> None:
        assert "seed=0,1,2" in arguments and "trainer.max_steps=5" in arguments
        for job, end in enumerate((100.0, 110.0, 125.0)):
            path = Path(folder) / "sweep" / str(job)
            path.mkdir(parents=True)
            (path / "config.yaml").write_text("{task: {}, data: {batch_size: 4, sequence_length: 10}}\n")
            (path / "summary.json").write_text(json.dumps({"steps": 5, "throughput/tokens_per_second": 50}))
            (path / "status.json").touch()
            os.utime(path / "status.json", (end, end))

    monkeypatch.setattr(programs, "_run", run)
    found = programs.sweep(jobs=3)
    assert found.seconds == {"total": [10.0, 15.0], "training": [4.0, 4.0]}
    assert found.value == 8.5
