"""The command line as a test runs it: with a stand-in for the task, in an empty folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mom.config import RunConfig
from mom.runs.directory import RunDirectory

SMALL = ["model.d_model=16", "model.num_heads=2"]

Task = Callable[[RunConfig, RunDirectory], dict[str, Any]]


def status(folder: str | Path) -> dict[str, Any]:
    """Return the recorded status of a run."""
    return json.loads((Path(folder) / "status.json").read_text())


def left_behind() -> list[str]:
    """Return everything in the working folder."""
    return sorted(str(path) for path in Path().rglob("*"))


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a wrong request."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def by_key(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Be interrupted by Ctrl-C."""
    raise KeyboardInterrupt
