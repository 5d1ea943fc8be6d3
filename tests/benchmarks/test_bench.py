"""The benchmark's record: rows are kept as they are measured, and its table is written into the documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import bench
from benchmarks.report import Measured

DOCS = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def one() -> Measured:
    return Measured.of([1.0, 2.0, 4.0], {"step": [1.0, 2.0, 4.0]})


def threads() -> Measured:
    return Measured.of([torch.get_num_threads()])


def fail() -> Measured:
    raise ValueError("no\nreally")


def row(name: str, measure: Callable[[], Measured] = one, **options: int) -> bench.Row:
    return bench.Row(name, name, "{:.1f}", measure=measure, **options)


def names(path: Path) -> list[str]:
    return list(json.loads(path.read_text())["rows"])


def test_a_killed_run_keeps_its_rows_and_goes_on(tmp_path, capsys):
    path, ran = tmp_path / "bench.json", []

    def run(row: bench.Row, killed_at: str = "") -> Measured:
        if row.name == killed_at:
            raise KeyboardInterrupt
        ran.append(row.name)
        return row.measure()

    rows = [row("a"), row("b"), row("c")]
    with pytest.raises(KeyboardInterrupt):
        bench.measure_all(rows, path, resume=False, run=partial(run, killed_at="b"))
    assert names(path) == ["a"]
    assert bench.measure_all(rows, path, resume=True, run=run) == {}
    assert names(path) == ran == ["a", "b", "c"]
    assert "c: 2.0 (1.5 to 3.0), target –" in capsys.readouterr().out


def test_rows_are_measured_again_and_others_kept(tmp_path):
    path = tmp_path / "bench.json"
    bench.measure_all([row("a"), row("b")], path, resume=False, run=lambda row: row.measure())
    bench.measure_all([row("a", threads)], path, resume=False, run=lambda row: row.measure())
    rows = json.loads(path.read_text())["rows"]
    assert rows["a"]["value"] == torch.get_num_threads() and rows["b"]["value"] == 2
    assert rows["b"]["seconds"] == {"step": [1.0, 2.0, 4.0]}


def test_a_row_that_starts_anew_is_not_resumed(tmp_path):
    path = tmp_path / "bench.json"
    bench.measure_all([row("a"), row("b")], path, resume=False, run=lambda row: row.measure())

    def killed(row: bench.Row) -> Measured:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.measure_all([row("a"), row("b")], path, resume=False, run=killed)
    assert names(path) == []


def test_a_row_that_fails_does_not_stop_the_others(tmp_path):
    path = tmp_path / "bench.json"
    rows = [row("fails", fail), row("dies", partial(os._exit, 3)), row("threads", threads, threads=3)]
    assert bench.measure_all(rows, path, resume=False, run=bench.run_row) == {
        "fails": "ValueError: no",
        "dies": "its process ended with exit code 3",
    }
    assert json.loads(path.read_text())["rows"]["threads"]["value"] == 3


def test_the_record_of_another_machine_is_refused(tmp_path, capsys):
    path = tmp_path / "bench.json"
    bench.measure_all([], path, resume=False, run=bench.run_row)
    record = json.loads(path.read_text())
    record["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        bench.main(["--rows", "help", "--out", str(path)])
    assert "has the rows of another machine" in capsys.readouterr().err


def test_the_table_has_all_rows_and_nothing_else_changes(tmp_path, monkeypatch):
    docs = tmp_path / "performance.md"
    docs.write_text(DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(bench, "run_row", lambda row: one())
    line = ["--out", str(tmp_path / "bench.json"), "--docs", str(docs)]
    assert bench.main(["--rows", "decode", "skip", *line]) == 0
    before, _, rest = docs.read_text(encoding="utf-8").partition("<!-- make bench: begin -->")
    written, _, after = rest.partition("<!-- make bench: end -->")
    table = [line for line in written.split("\n") if line.startswith("|")]
    assert table[0] == "| what | reached | target | met |" and len(table) == 2 + len(bench.ROWS)
    assert sum("| – |" not in line for line in table[2:]) == 2
    assert f"| {bench.ROWS['decode'].what} | 2.00 (1.50 to 3.00) | ≤ 1.10 | no |" in table
    assert torch.__version__ in written and "threads" in written
    original = DOCS.read_text(encoding="utf-8")
    assert original.startswith(before) and original.endswith(after)


def test_every_row_has_a_target_and_its_own_name():
    assert all(row.target != "–" and row.name == name for name, row in bench.ROWS.items())
    assert len({row.what for row in bench.ROWS.values()}) == len(bench.ROWS)
