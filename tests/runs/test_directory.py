"""The run directory: names, atomic writes, errors, and cleanup."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from mom.errors import UsageError
from mom.runs import directory as run_directory
from mom.runs.directory import RunDirectory, choose_run_dir, holds_checkpoints, new_run_dir, read_request


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "SLURM_NTASKS", "MOM_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_names_are_of_the_task_and_differ() -> None:
    found = {new_run_dir("pretrain") for _ in range(20)}

    assert len(found) > 15
    assert all(
        re.fullmatch(r"outputs/pretrain/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}", one) for one in found
    )


def test_the_name_given_wins_then_the_launching_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOM_RUN_DIR", "theirs")

    assert choose_run_dir("pretrain", "mine") == "mine"
    assert choose_run_dir("pretrain", None) == "theirs"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_processes_started_from_outside_need_one_name(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "2")

    with pytest.raises(UsageError, match=r"^run_dir must be set .*, got null"):
        choose_run_dir("pretrain", None)
    assert choose_run_dir("pretrain", "mine") == "mine"


def test_files_contain_what_was_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    run.write_config({"z": 1, "a": {"text": "ä", "none": None}})
    run.write_summary(
        {"val/loss": 1.5, "bad": float("nan"), "worse": float("inf"), "nested": [float("-inf"), 2]}
    )
    run.status("failed", ValueError("no\nway"))

    config = (run.path / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(config) == {"z": 1, "a": {"text": "ä", "none": None}}
    assert config.startswith("z:")
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary == {"val/loss": 1.5, "bad": None, "worse": None, "nested": [None, 2]}
    status = json.loads((run.path / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", {"type": "ValueError", "message": "no\nway"})
    assert names(run.path) == {"config.yaml", "summary.json", "status.json"}


def test_a_later_status_replaces_the_earlier(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.status("running")
    run.status("succeeded")

    assert json.loads((tmp_path / "status.json").read_text())["state"] == "succeeded"


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory.os, "fsync", full)
    with pytest.raises(
        UsageError,
        match=r"^cannot write to run_dir .*: No space left on device: .*status.json needs more than \d+ bytes, ",
    ):
        run.status("running")


def test_a_folder_that_cannot_be_created_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path in (tmp_path / "file", tmp_path / "file" / "inside", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=r"^cannot write to run_dir .*: "):
            RunDirectory(path)
    assert names(tmp_path) == {"file"}


def test_a_folder_that_cannot_be_written_is_rejected_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_directory.tempfile, "TemporaryFile", denied)
    with pytest.raises(UsageError, match="Permission denied"):
        RunDirectory(tmp_path / "a" / "b")

    assert not names(tmp_path)


def test_an_unused_folder_is_removed_with_the_parents_it_needed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    run.write_config({})
    run.status("running")

    assert run.remove_if_unused()
    assert not names(tmp_path)


def test_a_parent_in_use_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    RunDirectory(tmp_path / "a" / "c")

    assert run.remove_if_unused()
    assert names(tmp_path / "a") == {"c"}


def test_an_empty_folder_that_was_there_is_emptied_and_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.status("running")

    assert run.remove_if_unused()
    assert tmp_path.is_dir()
    assert not names(tmp_path)


@pytest.mark.parametrize("result", ["metrics.csv", "plain/status.json", "checkpoints/last.ckpt"])
def test_a_folder_with_a_result_is_kept(tmp_path: Path, result: str) -> None:
    run = RunDirectory(tmp_path / "a")
    run.status("running")
    (run.path / result).parent.mkdir(exist_ok=True)
    (run.path / result).touch()

    assert not run.remove_if_unused()
    assert (run.path / result).exists()
    assert (run.path / "status.json").exists()


def test_a_folder_that_held_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("old")
    run = RunDirectory(tmp_path)

    assert not run.remove_if_unused()
    assert names(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    run = RunDirectory(tmp_path)
    run.status("running")
    run.write_config({})
    run.write_summary({})

    assert not names(tmp_path)
    assert not run.remove_if_unused()


def test_checkpoints_are_seen(tmp_path: Path) -> None:
    assert not holds_checkpoints(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    assert not holds_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert holds_checkpoints(tmp_path)
    assert not holds_checkpoints(os.devnull)


def test_a_configuration_is_read_back(tmp_path: Path) -> None:
    shared = [1, 2]
    config = {"task": {"name": "pretrain"}, "a": shared, "b": shared, "ü": None}
    RunDirectory(tmp_path).write_config(config)
    assert read_request(tmp_path) == config
    assert read_request(tmp_path / "missing") is None
    (tmp_path / "config.yaml").write_text("phase: plain\n")
    assert read_request(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\n", r"not valid YAML \(expected ',' or '\]', but got '<stream end>' at line 2, column 1\)"),
        ("a: &x [1]\nb: [*x, *x]\n", r"not valid YAML \(a reference at line 2, column 5\)"),
        (
            "a: !!python/object/apply:os.system [touch ran-code]\n",
            r"not valid YAML \(could not determine a constr",
        ),
        ("[" * 100_000, r"not valid YAML \("),
        ("a: " + "1" * 10_000, r"not valid YAML \(Exceeds the limit"),
        ("\0", r"not valid YAML \("),
        ("a" * 5_000_000, "it has 5,000,000 bytes, more than any configuration"),
    ],
    ids=["open", "reference", "code", "nested", "digits", "binary", "huge"],
)
def test_a_damaged_configuration_is_one_line(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=f"^cannot read .*config.yaml: {message}") as error:
        read_request(tmp_path)
    assert "\n" not in str(error.value)
    assert not Path("ran-code").exists()
