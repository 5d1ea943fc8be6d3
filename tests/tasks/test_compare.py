"""`task=compare` from the command line: what it prints and writes."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from mom.cli import main
from mom.runs.comparison import compare
from mom.runs.records import find_runs
from tests.helpers.runs import write_grid, write_record
from tests.test_configs import CONF


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "HF_HUB_VERBOSITY", "MOM_RUN_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def run(*line: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", "task=compare", *line])
        GlobalHydra.instance().clear()
        return main(CONF)

    return run


def test_the_task_writes_its_table_in_every_form(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(Path("runs"))
    assert command("runs=runs", "task.reference_metric=baseline/val/loss", "run_dir=out") == 0

    out = capsys.readouterr().out
    best = compare(find_runs(["runs"]), "val/loss", reference_metric="baseline/val/loss").groups[0]
    assert best.difference is not None
    assert f"{best.mean:.4f}" in out and f"{best.difference.mean:+.4f}" in out
    assert "router.router changes together with router.router_prior" in out
    with Path("out/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == sorted(float(row["mean"]) for row in rows)
    assert float(rows[0]["difference"]) == best.difference.mean
    assert Path("out/comparison.md").read_text().count(f" {best.mean:.4f} |") == 1
    assert r"\toprule" in Path("out/comparison.tex").read_text()
    assert Path("out/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in Path("out/comparison.svg").read_text()
    assert json.loads(Path("out/summary.json").read_text())["counted"] == 12


def test_runs_that_only_look_at_weights_are_not_compared_with_those_that_train(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison itself is below the folder, and is not one of its runs."""
    for name in ("pretrain", "analyze"):
        for width in (16, 32):
            options = {"task.name": name, "model.d_model": width}
            write_record(Path("runs") / f"{name}{width}", options, {"val/loss": width / 10})
    assert command("runs=runs", "run_dir=runs/compared") == 0

    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("not counted")] == [
        "not counted: 2 runs of tasks that train nothing (analyze)"
    ]
    assert json.loads(Path("runs/compared/summary.json").read_text())["counted"] == 2
    assert command("runs=[runs/analyze16,runs/analyze32]") == 0
    assert "not counted" not in capsys.readouterr().out


def test_numbers_that_a_search_drew_are_shown_in_four_digits(command: Callable[..., int]) -> None:
    for number, rate in enumerate([0.0011194640823136085, 0.002]):
        write_record(
            Path("runs") / str(number), {"optimizer.lr": rate, "model.block": "gpt2_like"}, {"val/loss": 1.0}
        )
    assert command("runs=runs", "task.group_by=[optimizer.lr,model.block]", "run_dir=out") == 0

    rows = [line.split("|")[1:3] for line in Path("out/comparison.md").read_text().splitlines()[2:]]
    assert sorted([cell.strip() for cell in row] for row in rows if len(row) == 2) == [
        ["0.001119", "gpt2_like"],
        ["0.002", "gpt2_like"],
    ]
    assert "0.0011194640823136085" in Path("out/comparison.csv").read_text()


def test_the_task_draws_the_metric_over_a_cost(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (steps, loss) in enumerate([(100, 3.0), (200, 2.0), (150, 2.0)]):
        summary = {"val/loss": loss, "cost": steps}
        write_record(Path("runs") / str(number), {"model.size": f"m{number}"}, summary)
    line = ("runs=runs", "task.cost_metric=cost", "task.baseline=[runs/0,runs/1]", "run_dir=out")
    assert command(*line) == 0

    there = 2 + np.log(200 / 150) / np.log(2)
    out = capsys.readouterr().out
    assert f"{2 - there:+.4f}" in out and f"{there:.4f}" in out
    assert "the curve through size=m1, size=m0 at the same cost" in out
    with Path("out/comparison.csv").open() as file:
        assert {row["model.size"]: row["cost"] for row in csv.DictReader(file)} == {
            "m0": "100.0",
            "m1": "200.0",
            "m2": "150.0",
        }
    assert Path("out/comparison_by_cost.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_saved_as_a_table_that_compares_alike(command: Callable[..., int]) -> None:
    write_grid(Path("runs"))
    assert command("runs=runs", "task.baseline=runs/0", "task.save_runs=tables/study.csv", "run_dir=one") == 0
    assert command("runs=tables/study.csv", "task.baseline=tables/study.csv/0", "run_dir=two") == 0
    mixed = "runs=[tables/study.csv/0,tables/study.csv/1,tables/study.csv/2,'runs/[3-9]','runs/1?']"
    assert command(mixed, "task.baseline=tables/study.csv/0", "run_dir=three") == 0

    first, *others = (Path(name, "comparison.csv").read_text() for name in ("one", "two", "three"))
    assert others == [first, first]


@pytest.mark.filterwarnings("error:constrained_layout not applied")
def test_figures_have_room_for_long_labels(command: Callable[..., int]) -> None:
    options = [f"model.an_option_with_a_long_name_{index}" for index in range(12)]
    for number in range(3):
        given = dict.fromkeys(options, number)
        write_record(Path("runs") / str(number), given, {"val/loss": 3.0 - number, "cost": 100 + number})
    by = f"task.group_by=[{','.join(options)}]"
    assert (
        command("runs=runs", "task.cost_metric=cost", "task.baseline=[runs/0,runs/2]", by, "run_dir=out") == 0
    )
    assert Path("out/comparison.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "task=compare requires runs: run directories"),
        (["runs=nowhere"], "cannot read runs from nowhere: no such directory or table"),
        (["runs=empty"], "cannot read runs from empty: there are no runs there"),
        (["runs=runs", "task.metric=x"], "task.metric=x is not in the summary.json of any finished run"),
        (
            ["runs=runs", "task.baseline=a", "task.reference_metric=b"],
            "task.reference_metric cannot be combined with task.baseline: ",
        ),
        (
            ["runs=runs", "task.baseline=[a,b]"],
            "task.baseline must name one run unless task.cost_metric is set, got [a, b]",
        ),
        (
            ["runs=runs", "task.cost_metric=x", "task.baseline=a"],
            "task.cost_metric requires task.baseline to name at least two runs, got a",
        ),
        (["runs=runs", "task.save_runs=table.txt"], "task.save_runs must end in .csv, got table.txt"),
        (["runs=runs", "task.along=cost"], "task.along was renamed to task.cost_metric"),
        (["runs=runs", "+task.by=[seed]"], "task.by was renamed to task.group_by"),
        (
            ["runs=runs", "task.confidence=1"],
            "task.confidence must be greater than 0 and less than 1, got 1.0",
        ),
    ],
)
def test_a_wrong_request_is_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    write_record(Path("runs/a"), {}, {"val/loss": 1.0})
    Path("empty").mkdir()

    assert command(*line) == 2
    (out,) = capsys.readouterr().err.splitlines()
    assert out.startswith(f"error: {message}")
    assert not Path("outputs").exists()
