"""Records of finished runs, from directories and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mom.config.composition import composed
from mom.errors import UsageError
from mom.model.options import options_of
from mom.runs.records import STAGE_OPTIONS, Run, find_runs, is_within, write_table
from tests.helpers.runs import write_record
from tests.test_configs import CONF


def test_runs_are_found_below_folders_and_by_patterns_once(tmp_path: Path) -> None:
    for name in ("a/0", "a/deep/1", "b/0"):
        write_record(tmp_path / name, {"seed": int(name[-1]), "model.top_k": 2}, {"val/loss": 1.5})

    found = find_runs([str(tmp_path / "a"), str(tmp_path / "*" / "0")])
    assert [run.folder.relative_to(tmp_path).as_posix() for run in found] == ["a/0", "a/deep/1", "b/0"]
    assert [(run.seed, run.options["model.top_k"], run.value("val/loss")) for run in found] == [
        (0, "2", 1.5),
        (1, "2", 1.5),
        (0, "2", 1.5),
    ]


def test_a_run_that_did_not_succeed_has_no_number_and_says_why(tmp_path: Path) -> None:
    for state in ("succeeded", "failed", "interrupted"):
        write_record(tmp_path / state, {}, {"val/loss": 1.5}, state)

    found = {run.folder.name: run for run in find_runs([str(tmp_path)])}
    assert {name: run.value("val/loss") for name, run in found.items()} == {
        "succeeded": 1.5,
        "failed": None,
        "interrupted": None,
    }
    assert found["succeeded"].value("test/loss") is None
    assert found["succeeded"].why_not("test/loss") == "has no test/loss"
    assert found["failed"].why_not("val/loss") == "failed: loss is NaN"


def test_a_directory_without_runs_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot read runs from .*: there are no runs there$"):
        find_runs([str(tmp_path)])
    with pytest.raises(UsageError, match=r"^cannot read runs from .*nowhere: no such directory or table$"):
        find_runs([str(tmp_path / "nowhere")])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        UsageError, match=r"^runs must name tables written by task\.save_runs, got .*other\.csv$"
    ):
        find_runs([str(tmp_path / "other.csv")])


def test_a_table_has_the_same_content_as_the_run_directories(tmp_path: Path) -> None:
    for place, options, summary in (
        ("plain/0", {"model.num_stages": 0, "optimizer.betas": [0.9, 0.95]}, {"val/loss": 0.1 + 0.2}),
        ("plain/1", {"model.num_stages": 0, "seed": 1, "optimizer.betas": [0.9, 0.95]}, {"val/loss": 2}),
        ("mom/0", {"model.num_stages": 1, "model.top_k": 2, "data.path": ""}, {"steps": 3, "hash": "00"}),
        ("mom/1", {"model.num_stages": 1, "model.top_k": "all, of them"}, {"val/loss": None}),
    ):
        write_record(tmp_path / "runs" / place, options, summary)
    write_record(tmp_path / "runs" / "failed", {}, {}, "failed")
    (tmp_path / "runs" / "mom" / "0" / "provenance.json").write_text(
        json.dumps({"command": "python run.py 'a=[1,2]'", "commit": "abc", "modified": True})
    )

    runs = find_runs([str(tmp_path / "runs")])
    table = tmp_path / "study.csv"
    write_table(runs, table)
    assert _described(find_runs([str(table)]), table) == _described(runs, tmp_path / "runs")
    by_name = {run.folder.relative_to(table).as_posix(): run for run in find_runs([str(table)])}
    assert by_name["mom/0"].origin == {"commit": "abc with changes", "command": "python run.py 'a=[1,2]'"}
    assert by_name["failed"].why_not("val/loss") == "failed: loss is NaN"
    # A table of the rows of a table is the same table.
    write_table(find_runs([str(table)]), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == table.read_text()


def test_a_table_keeps_the_seed_that_all_runs_share_and_where_they_are_from(tmp_path: Path) -> None:
    for place in ("a/0", "b/1"):
        write_record(tmp_path / "runs" / place, {"seed": 7, "model.d_model": len(place)}, {"val/loss": 1.5})
        status = {"state": "succeeded", "error": None, "time": f"2026-01-02T03:04:05+00:00 {place}"}
        (tmp_path / "runs" / place / "status.json").write_text(json.dumps(status))
        origin = {"command": f"python run.py {place}", "commit": place}
        (tmp_path / "runs" / place / "provenance.json").write_text(json.dumps(origin))

    runs = find_runs([str(tmp_path / "runs")])
    write_table(runs, tmp_path / "study.csv")
    rows = find_runs([str(tmp_path / "study.csv")])
    assert [run.seed for run in rows] == [7, 7]
    assert [run.origin for run in rows] == [run.origin for run in runs]
    assert [run.status for run in rows] == [run.status for run in runs]


def test_a_column_stands_behind_the_one_that_it_follows_in_a_run(tmp_path: Path) -> None:
    write_record(tmp_path / "runs" / "0", {}, {"a": 1, "c": 1})
    write_record(tmp_path / "runs" / "1", {}, {"a": 1, "b": 1, "c": 1, "d": 1})
    write_table(find_runs([str(tmp_path / "runs")]), tmp_path / "study.csv")

    header = next(line for line in (tmp_path / "study.csv").read_text().splitlines() if line[0] != "#")
    assert header == "run,state,time,commit,command,a,b,c,d"


def _described(runs: list[Run], root: Path) -> list[tuple]:
    """Describe runs in order, without the option run_dir."""
    return [
        (
            run.folder.relative_to(root).as_posix(),
            [(name, value) for name, value in run.options.items() if name != "run_dir"],
            run.seed,
            run.value("val/loss"),
            run.why_not("val/loss"),
            run.summary,
        )
        for run in runs
    ]


def test_rows_of_a_table_are_named_as_the_directories_were(tmp_path: Path) -> None:
    for place in ("a/0", "a/1", "ab/0", "c/d/0"):
        write_record(tmp_path / "runs" / place, {}, {"val/loss": 1.5})
    table = tmp_path / "study.csv"
    write_table(find_runs([str(tmp_path / "runs")]), table)

    def names(inside: str) -> list[str]:
        return [run.folder.relative_to(table).as_posix() for run in find_runs([f"{table}/{inside}"])]

    assert names("a") == ["a/0", "a/1"]
    assert names("a/1") == ["a/1"]
    assert names("*/0") == ["a/0", "ab/0"]
    assert names("c/*") == ["c/d/0"]
    both = find_runs([str(tmp_path / "*.csv"), str(tmp_path / "runs" / "a"), str(table / "a" / "0")])
    assert len(both) == 6
    with pytest.raises(UsageError, match=r"^cannot read runs from .*study\.csv/b: there are no runs there$"):
        names("b")
    with pytest.raises(UsageError, match=r"there are no runs there$"):  # a run holds no run
        names("a/1/plain")


def test_a_plain_transformer_has_no_options_of_stages(tmp_path: Path) -> None:
    options = {"model.top_k": 2, "model.d_model": 8, "router.router": "gru", "optimizer.lr": 0.1}
    for stages in (0, 1):
        write_record(tmp_path / str(stages), {"model.num_stages": stages, **options}, {})

    plain, routed = find_runs([str(tmp_path)])
    assert set(routed.options) - set(plain.options) == {"model.top_k", "router.router"}


def test_a_name_is_within_itself_and_its_groups_only() -> None:
    assert is_within("model.top_k", "model") and is_within("model.top_k", "model.top_k")
    assert not is_within("model.top_k_growth", "model.top_k") and not is_within("model", "model.top_k")


def test_options_that_only_stages_use_are_options() -> None:
    names = {f"{group}.{name}" for group in ("model", "router") for name in options_of(group)}
    given = composed(CONF, [])
    names |= {f"{group}.{name}" for group in ("optimizer", "callbacks") for name in given[group]}

    assert set(STAGE_OPTIONS) - {"router"} <= names


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    write_record(tmp_path / "runs" / "a", {"seed": 1}, {"val/loss": 1.5})
    path = tmp_path / "table.csv"
    write_table(find_runs([str(tmp_path / "runs")]), path)
    content = path.read_text()
    for damaged in (
        content + "one,cell\n",
        content + "," * 50 + "\n",
        content.replace("run,", "ran,", 1),
        content.replace("# seed: 1", "# seed: x"),
        content.encode("utf-16"),
        "",
    ):
        path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        with pytest.raises(UsageError, match=r"table.csv") as error:
            find_runs([str(path)])
        assert "\n" not in str(error.value)
