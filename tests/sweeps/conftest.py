"""Fixtures: an empty working directory, and the command line of :mod:`tests.sweeps.program` in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from mom.cli import main
from tests.sweeps import program

SOURCES = f"{program.ROOT}{os.pathsep}{program.ROOT / 'src'}"


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to an empty working directory; restore signal handlers and environment variables afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "MOM_RUN_DIR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HYDRA_FULL_ERROR", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("PYTHONPATH", SOURCES)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    GlobalHydra.instance().clear()


@pytest.fixture
def launch(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs the command line in this process; its jobs run the stand-in task."""

    def run(*line: str) -> int:
        monkeypatch.setattr(sys, "argv", [program.__file__, *line])
        return main(program.ROOT / "conf")

    return run
