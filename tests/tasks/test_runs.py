"""The table of runs: what it says of each, filters, order, and runs whose process is gone."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mom.config import RunsConfig, bind
from mom.config.composition import composed
from mom.errors import UsageError
from mom.runs.directory import RunDirectory
from mom.tasks import runs
from tests.test_configs import CONF


def write(folder: Path, state: str, losses: list[float], *, minutes: float = 1, **request: Any) -> None:
    folder.mkdir(parents=True)
    request = {"task": {"name": "pretrain", "plain_steps": 0}, "trainer": {"max_steps": 500}, **request}
    (folder / "config.yaml").write_text(yaml.safe_dump(request))
    then = datetime.datetime.now().astimezone() - datetime.timedelta(minutes=minutes)
    status = {"state": state, "error": None, "time": then.isoformat(timespec="seconds")}
    (folder / "status.json").write_text(json.dumps(status))
    rows = [f"{100 * number - 1},,{loss}" for number, loss in enumerate(losses, start=1)]
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", "9,3.5,", *rows]) + "\n")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs"
    write(folder / "a", "succeeded", [5.0, 4.0, 3.0], minutes=200, tags=["long"], name="first")
    (folder / "a" / "summary.json").write_text(json.dumps({"steps": 500, "val/loss": 2.5}))
    write(folder / "b", "failed", [6.0, float("nan")], minutes=3, arm="plain")
    write(folder / "c", "running", [], minutes=2, task={"name": "finetune"})  # without an owner
    write(tmp_path / "multirun" / "s" / "0", "interrupted", [4.5], minutes=3000)
    (folder / "d").mkdir()
    (folder / "d" / "config.yaml").write_text("a: [1\n")
    return folder


def table(capsys: pytest.CaptureFixture[str], *overrides: str) -> list[list[str]]:
    runs.run(bind(composed(CONF, ["task=runs", *overrides])))
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    return [line.split() for line in out.splitlines()]


def test_each_run_is_a_row_the_newest_first(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title, headings, *rows = table(capsys)

    assert title == ["5", "runs"]
    assert headings == ["run", "task", "status", "loss", "step", "age"]
    assert rows == [
        ["outputs/c", "finetune", "interrupted", "–", "10/500", "2", "min"],
        ["outputs/b", "(plain)", "pretrain", "failed", "nan", "200/500", "3", "min"],
        ["outputs/a", "(first)", "pretrain", "succeeded", "█▅▂▁", "2.500", "500/500", "3", "h"],
        ["multirun/s/0", "pretrain", "interrupted", "4.500", "100/500", "2", "d"],
        ["outputs/d", "–", "unreadable", "–", "–", "–"],
    ]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["task.sort=loss"], ["outputs/a", "multirun/s/0", "outputs/b"]),
        (["task.status=failed"], ["outputs/b"]),
        (["task.of_task=pretrain", "task.sort=name"], ["multirun/s/0", "outputs/a", "outputs/b"]),
        (
            ["task.of_task=pretrain", "task.sort=name", "task.reverse=true"],
            ["outputs/b", "outputs/a", "multirun/s/0"],
        ),
        (["task.tag=long"], ["outputs/a"]),
        (["task.match=fir"], ["outputs/a"]),
        (["task.match=*/s/*"], ["multirun/s/0"]),
        (["runs=multirun"], ["multirun/s/0"]),
        (["runs=[outputs/a,outputs/b]", "task.limit=1"], ["outputs/b"]),
    ],
)
def test_runs_are_filtered_and_sorted(
    outputs: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], names: list[str]
) -> None:
    rows = [row[0] for row in table(capsys, *overrides)[2:]]

    assert rows[: len(names)] == names


def test_a_common_folder_stands_in_the_title(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title, _, *rows = table(capsys, "runs=outputs", "task.of_task=pretrain")

    assert title == ["2", "of", "4", "runs", "in", "outputs"]
    assert [row[0] for row in rows] == ["b", "a"]


def test_a_run_that_is_owned_is_running_and_its_phase_is_named(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = outputs / "e"
    write(folder / "plain", "running", [5.0])
    for name in ("config.yaml", "status.json"):
        (folder / "plain" / name).rename(folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": {"name": "pretrain", "plain_steps": 200}}))
    with RunDirectory(folder).owned():
        assert table(capsys, "task.status=running")[2:] == [
            ["outputs/e", "pretrain", "running", "5.000", "plain", "100/200", "1", "min"]
        ]
    assert table(capsys, "task.match=outputs/e")[2][2] == "interrupted"


def test_a_folder_without_runs_is_rejected_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for overrides, message in (
        ([], "runs must be folders with runs, got outputs and multirun of this folder, without any"),
        (["runs=empty"], "runs must be folders with runs, got empty, without any"),
        (["runs=missing"], "cannot read runs from missing: no such directory"),
    ):
        with pytest.raises(UsageError, match=f"^{message}$"):
            runs.run(bind(composed(CONF, ["task=runs", *overrides])))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not RunsConfig.keeps_record


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], ""),
        ([1.0, 1.0], "▁▁"),
        ([8.0, 1.0, 4.5], "█▁▅"),
        ([3.0, float("inf"), 1.0], "█×▁"),
        (list(range(16)), "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_sparkline(values: list[float], line: str) -> None:
    assert runs.sparkline(values) == line
