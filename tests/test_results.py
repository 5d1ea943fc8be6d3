"""docs/results.md stands on the records beside it: each of its tables is what the command above it prints."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from mom.cli import main
from mom.runs.records import find_runs
from tests.test_configs import CONF

ROOT = CONF.parent
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = [
    command.replace("\\\n", " ")
    for command in re.findall(r"^    python run\.py (task=compare (?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
]


def table_after(command: str) -> list[str]:
    """The lines of the first table below a command of the page."""
    below = PAGE.replace("\\\n", " ").partition(command)[2].splitlines()
    first = next(index for index, line in enumerate(below) if line.startswith("|"))
    return list(_leading(below[first:]))


def _leading(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"results/(\w+)", command)[0])
def test_a_table_is_what_its_command_prints(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("HYDRA_FULL_ERROR", "HF_HUB_VERBOSITY", "MOM_RUN_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["run.py", *shlex.split(command), f"run_dir={tmp_path / 'out'}"])
    GlobalHydra.instance().clear()

    assert main(CONF) == 0
    written = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert table_after(command) == list(_leading(written.splitlines()))


def test_every_record_is_of_a_run_that_succeeded_and_stands_in_a_table() -> None:
    runs = find_runs([str(ROOT / "docs" / "results")])

    assert len(COMMANDS) >= 5
    assert {run.status["state"] for run in runs} == {"succeeded"}
    root = ROOT / "docs" / "results"
    named = {name for command in COMMANDS for name in re.findall(r"results/([\w/]+)", command)}
    for run in runs:
        own = run.folder.relative_to(root).as_posix()
        # Phase 1 and the like are compared with nothing; the page says where they are.
        assert (
            any(f"{own}/".startswith(f"{name}/") for name in named) or f"`{own.rpartition('/')[0]}`" in PAGE
        ), own


def test_records_are_small_and_hold_nothing_of_the_machine() -> None:
    files = [path for path in (ROOT / "docs" / "results").rglob("*") if path.is_file()]

    assert {path.name for path in files} <= {"config.yaml", "status.json", "summary.json"}
    assert sum(path.stat().st_size for path in files) < 5e6
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|work|tmp)/", text), path
        if path.suffix == ".json":
            json.loads(text)
