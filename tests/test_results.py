"""The pages of measurements rest on docs/results/: each table is what the command above it prints."""

from __future__ import annotations

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
TABLES = ROOT / "docs" / "results"
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("results.md", "lab-notebook.md", "withdrawn-studies.md")
}
COMMANDS = [
    (page, command.replace("\\\n", " "))
    for page, text in PAGES.items()
    for command in re.findall(r"^    python run\.py (task=compare (?:.*\\\n)*.*)$", text, re.MULTILINE)
]


def table_after(page: str, command: str) -> list[str]:
    """The lines of the first table below a command of the page."""
    below = PAGES[page].replace("\\\n", " ").partition(command)[2].splitlines()
    first = next(index for index, line in enumerate(below) if line.startswith("|"))
    return list(_leading(below[first:]))


def _leading(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield line


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_table_is_what_its_command_prints(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("HYDRA_FULL_ERROR", "HF_HUB_VERBOSITY", "MOM_RUN_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["run.py", *shlex.split(command), f"run_dir={tmp_path / 'out'}"])
    GlobalHydra.instance().clear()

    assert main(CONF) == 0
    written = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert table_after(page, command) == list(_leading(written.splitlines()))


def test_every_record_is_of_a_run_that_succeeded_and_stands_in_a_table() -> None:
    runs = find_runs([str(TABLES / "*.csv")])

    assert len(COMMANDS) >= 5
    assert {run.status["state"] for run in runs} == {"succeeded"}
    assert all(run.origin["command"].startswith("python run.py ") and run.origin["commit"] for run in runs)
    named = {name for _, command in COMMANDS for name in re.findall(r"docs/results/([\w./]+)", command)}
    for run in runs:
        own = run.folder.relative_to(TABLES).as_posix()
        # Phase 1 and the like are compared with nothing; the page says where they are.
        assert (
            any(f"{own}/".startswith(f"{name}/") for name in named)
            or f"`{own.rpartition('/')[0]}`" in PAGES["withdrawn-studies.md"]
        ), own


def test_records_are_small_and_hold_nothing_of_the_machine() -> None:
    files = list(TABLES.rglob("*"))

    assert {path.suffix for path in files} == {".csv"} and len(files) <= 20
    assert sum(path.stat().st_size for path in files) < 2e6
    for path in files:
        assert not re.search(r"/(home|root|work|tmp)/", path.read_text(encoding="utf-8")), path


def test_the_page_of_results_is_short() -> None:
    assert len(PAGES["results.md"].split()) <= 1500
