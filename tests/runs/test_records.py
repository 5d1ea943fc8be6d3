"""What the folders of finished runs tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from mom.config.composition import composed
from mom.errors import RequestError
from mom.model.options import options_of
from mom.runs.records import OF_STAGES, find_runs, is_within
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


def test_a_place_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^runs: .*; a folder with runs \(config\.yaml\) in it"):
        find_runs([str(tmp_path)])
    with pytest.raises(RequestError, match=r"^runs: .*nowhere; a folder or table that is there"):
        find_runs([str(tmp_path / "nowhere")])


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

    assert set(OF_STAGES) - {"router"} <= names
