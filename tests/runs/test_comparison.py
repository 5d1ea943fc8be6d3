"""Comparisons of runs against pandas and SciPy."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mom.cli import main
from mom.errors import UsageError
from mom.runs.comparison import compare, paired
from mom.runs.records import find_runs, write_table
from tests.helpers.runs import write_record

CONF = Path(__file__).resolve().parents[2] / "conf"


def write_grid(root: Path, seeds: int = 3) -> pd.DataFrame:
    """Write runs of two routers (one with its own prior), two values of K, and some seeds; return them as a table."""
    draw = np.random.default_rng(0)
    rows = []
    for router in ("gru", "mlp"):
        for top_k in (1, 2):
            for seed in range(seeds):
                plain, gain = 4 + 0.1 * seed, draw.normal(0.1 * top_k, 0.03)
                row = {"router": router, "top_k": top_k, "seed": seed, "loss": plain - gain, "plain": plain}
                prior = {"gru": "none", "mlp": "looped"}[router]
                options = {
                    "router.router": router,
                    "router.router_prior": prior,
                    "model.top_k": top_k,
                    "seed": seed,
                }
                summary = {"val/loss": row["loss"], "baseline/val/loss": plain}
                write_record(root / str(len(rows)), options, summary)
                rows.append(row)
    return pd.DataFrame(rows)


def test_groups_are_those_of_pandas_best_first(tmp_path: Path) -> None:
    frame = write_grid(tmp_path / "runs")
    found = compare(find_runs([str(tmp_path / "runs")]), "val/loss")

    wanted = frame.groupby(["router", "top_k"]).loss.agg(["mean", "std", "count"]).sort_values("mean")
    assert found.options == ("router.router", "model.top_k")
    assert found.together == {"router.router": ("router.router_prior",)}
    assert [group.options for group in found.groups] == [(router, str(k)) for router, k in wanted.index]
    for group, row in zip(found.groups, wanted.itertuples(), strict=True):
        assert (group.mean, group.deviation, len(group.values)) == pytest.approx(
            (row.mean, row.std, row.count)
        )
    reverse = compare(find_runs([str(tmp_path / "runs")]), "val/loss", largest_is_best=True)
    assert [group.options for group in reverse.groups] == [group.options for group in found.groups][::-1]


def test_differences_from_a_group_are_paired_by_seed(tmp_path: Path) -> None:
    frame = write_grid(tmp_path / "runs")
    found = compare(find_runs([str(tmp_path / "runs/*")]), "val/loss", baseline=[tmp_path / "runs" / "1"])

    table = frame.pivot_table(index="seed", columns=["router", "top_k"], values="loss")
    for index, group in enumerate(found.groups):
        router, top_k = group.options
        if (router, top_k) == ("gru", "1"):
            assert found.baseline == (index,) and group.difference is None
            continue
        test = stats.ttest_rel(table[router, int(top_k)], table["gru", 1])
        interval = test.confidence_interval(0.95)
        difference = group.difference
        assert difference is not None
        assert difference.mean == pytest.approx((table[router, int(top_k)] - table["gru", 1]).mean())
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
        assert difference.mean / difference.error == pytest.approx(test.statistic)  # type: ignore[operator]


def test_the_baseline_is_the_run_in_its_place_not_one_of_its_name(tmp_path: Path) -> None:
    for router, loss in (("gru", 1.0), ("linear", 2.0), ("mlp", 3.0)):
        for seed in range(2):
            options = {"router.router": router, "seed": seed}
            write_record(tmp_path / "runs" / router / str(seed), options, {"val/loss": loss + seed})
    table = tmp_path / "study.csv"
    write_table(find_runs([str(tmp_path / "runs")]), table)

    for place in (tmp_path / "runs", table):
        for router, number in (("gru", 0), ("linear", 1), ("mlp", 2)):
            for seed in "01":
                found = compare(find_runs([str(place)]), "val/loss", baseline=[place / router / seed])
                assert found.baseline == (number,)
                means = [None if one.difference is None else one.difference.mean for one in found.groups]
                assert means == [None if other == number else other - number for other in range(3)]


def test_differences_from_the_runs_own_other_metric(tmp_path: Path) -> None:
    frame = write_grid(tmp_path / "runs")
    found = compare(
        find_runs([str(tmp_path / "runs")]), "val/loss", reference_metric="baseline/val/loss", confidence=0.9
    )

    for group in found.groups:
        own = frame[(frame.router == group.options[0]) & (frame.top_k == int(group.options[1]))]
        interval = stats.ttest_rel(own.loss, own.plain).confidence_interval(0.9)
        assert group.difference is not None
        assert (group.difference.low, group.difference.high) == pytest.approx((interval.low, interval.high))


def test_a_curve_is_read_at_each_runs_own_cost(tmp_path: Path) -> None:
    """The plain runs' loss falls by 0.5 per doubling of the cost, from a different level for each seed."""
    for seed in range(3):
        for steps in (100, 400, 800):
            summary = {"val/loss": 9 + seed - 0.5 * np.log2(steps), "cost": steps}
            write_record(tmp_path / f"plain_{steps}_{seed}", {"seed": seed, "model.size": steps}, summary)
        for name, cost in (("within", 200 * 1.5**seed), ("outside", 500 * 2**seed)):
            summary = {"val/loss": 8 + seed - 0.5 * np.log2(cost), "cost": cost}
            write_record(tmp_path / f"{name}_{seed}", {"seed": seed, "model.size": name}, summary)
    write_record(tmp_path / "free", {"seed": 5, "model.size": "free"}, {"val/loss": 1.0})

    curve = [tmp_path / f"plain_{steps}_0" for steps in (800, 100, 400)]
    found = compare(find_runs([str(tmp_path)]), "val/loss", baseline=curve, cost_metric="cost")
    groups = {group.options[0]: group for group in found.groups}
    assert [found.groups[index].options[0] for index in found.baseline] == ["800", "400", "100"]
    assert all(groups[steps].difference is None for steps in ("100", "400", "800"))
    assert groups["within"].cost == pytest.approx(200 * (1 + 1.5 + 2.25) / 3)
    assert groups["within"].others == pytest.approx(
        {seed: 9 + seed - 0.5 * np.log2(200 * 1.5**seed) for seed in range(3)}
    )
    within = groups["within"].difference
    assert within is not None and (within.pairs, within.mean) == (3, pytest.approx(-1))
    assert list(groups["outside"].others) == [0]  # 1,000 and 2,000 are outside the curve
    assert [(run.folder.name, why) for run, why in found.left_out] == [("free", "has no cost")]


@given(
    ours=st.dictionaries(st.integers(0, 6), st.floats(-5, 5), max_size=6),
    theirs=st.dictionaries(st.integers(0, 6), st.floats(-5, 5), max_size=6),
)
def test_only_common_seeds_are_paired(ours: dict[int, float], theirs: dict[int, float]) -> None:
    found = paired(ours, theirs)
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]

    assert (found is None) == (not both)
    if found is not None:
        assert found.pairs == len(both)
        assert found.mean == pytest.approx(sum(both) / len(both))
        assert (found.error is None) == (len(both) == 1)


def test_runs_that_do_not_count_are_listed(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs")
    write_record(tmp_path / "runs" / "x" / "failed", {"seed": 9}, {"val/loss": 1.0}, "failed")
    write_record(tmp_path / "runs" / "y", {"seed": 9}, {"train/loss": 1.0})
    write_record(tmp_path / "runs" / "z", {"seed": 9}, {}, "running")
    # A phase has no task and belongs to its run.
    (tmp_path / "runs" / "0" / "plain").mkdir()
    (tmp_path / "runs" / "0" / "plain" / "config.yaml").write_text("phase: plain\n")

    found = compare(find_runs([str(tmp_path / "runs"), str(tmp_path / "runs" / "y")]), "val/loss")
    assert [(run.folder.name, why) for run, why in found.left_out] == [
        ("failed", "failed: loss is NaN"),
        ("y", "has no val/loss"),
        ("z", "running: loss is NaN"),
    ]
    assert sum(len(group.values) for group in found.groups) == 12


def test_what_only_stages_use_does_not_tell_plain_transformers_apart(tmp_path: Path) -> None:
    for number, (stages, router, top_k) in enumerate(
        [(0, "gru", 1), (0, "mlp", 2), (1, "gru", 1), (1, "mlp", 2)]
    ):
        options = {"seed": number, "model.num_stages": stages, "router.router": router, "model.top_k": top_k}
        write_record(tmp_path / str(number), options, {"a": number})

    found = compare(find_runs([str(tmp_path)]), "a")
    assert found.options == ("model.top_k",)
    assert found.together == {"model.top_k": ("model.num_stages", "router.router")}
    assert [group.options for group in found.groups] == [("–",), ("1",), ("2",)]
    assert [sorted(group.values) for group in found.groups] == [[0, 1], [2], [3]]


def test_an_option_with_one_value_where_it_is_one_has_no_column(tmp_path: Path) -> None:
    for number, (stages, top_k) in enumerate([(0, 1), (1, 1), (1, 2)]):
        options = {"model.num_stages": stages, "router.router": "gru", "model.top_k": top_k}
        write_record(tmp_path / str(number), options, {"a": number})

    found = compare(find_runs([str(tmp_path)]), "a")
    assert found.together == {"model.top_k": ("model.num_stages", "router.router")}


def test_an_arm_names_all_options_that_it_sets(tmp_path: Path) -> None:
    arms = {
        "plain": (0, "gru", True),
        "random": (1, "random", False),
        "mom": (1, "gru", True),
        "mom_without_skip": (1, "gru", False),
    }
    for number, (arm, (stages, router, skip)) in enumerate(arms.items()):
        options = {"model.num_stages": stages, "router.router": router, "model.skip": skip, "arm": arm}
        write_record(tmp_path / str(number), {"seed": 0, **options}, {"a": number})

    found = compare(find_runs([str(tmp_path)]), "a", largest_is_best=True)
    assert found.options == ("arm",)
    assert [group.options for group in found.groups] == [(arm,) for arm in reversed(arms)]
    assert set(found.together["arm"]) == {"model.num_stages", "model.skip", "router.router"}
    two = compare(find_runs([str(tmp_path / "0"), str(tmp_path / "2")]), "a")
    assert two.options == ("arm",)


def test_what_is_grouped_by_can_be_chosen(tmp_path: Path) -> None:
    for seed in range(2):
        write_record(
            tmp_path / f"{seed}", {"seed": seed, "init": f"plain{seed}", "data.num_workers": seed}, {"a": 1}
        )

    assert len(compare(find_runs([str(tmp_path)]), "a").groups) == 2
    (alone,) = compare(find_runs([str(tmp_path)]), "a", ignore=["init"]).groups
    assert (alone.options, sorted(alone.values)) == ((), [0, 1])
    (alone,) = compare(find_runs([str(tmp_path)]), "a", group_by=["task"]).groups
    assert alone.options == ("pretrain",)


def test_an_invalid_choice_is_rejected(tmp_path: Path) -> None:
    write_record(tmp_path / "a", {"seed": 1, "model.top_k": 1}, {"val/loss": 1.0})
    write_record(tmp_path / "b", {"seed": 1, "model.top_k": 2}, {"val/loss": 2.0})
    runs = find_runs([str(tmp_path)])

    for message, options in (
        (r"^task\.metric=val/los is not in .*; did you mean val/loss\?$", {"metric": "val/los"}),
        (r"^.*a and .*b have the same options and seed; ", {"ignore": ["model"]}),
        (
            r"^task\.group_by must list options of the runs, got model.topk; did you mean model.top_k\?$",
            {"group_by": ["model.topk"]},
        ),
        (r"^task\.ignore must list options of the runs, got zzz$", {"ignore": ["zzz"]}),
        (
            r"^task\.baseline must be one of the finished runs .*, got nowhere$",
            {"baseline": [Path("nowhere")]},
        ),
        (r"^task\.cost_metric=val/los is not in .*; did you mean val/loss\?$", {"cost_metric": "val/los"}),
        (
            r"^task\.reference_metric=val/los is not in .*; did you mean val/loss\?$",
            {"reference_metric": "val/los"},
        ),
        (
            r"^task\.cost_metric requires task\.baseline to name runs of at least two groups, got \[.*a\]$",
            {"cost_metric": "val/loss", "baseline": [tmp_path / "a"]},
        ),
    ):
        with pytest.raises(UsageError, match=message):
            compare(runs, **({"metric": "val/loss"} | options))  # type: ignore[arg-type]


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
    assert f"{best.mean:.4f}" in out and f"{best.difference.mean:+.4f}" in out  # type: ignore[union-attr]
    assert "router.router changes together with router.router_prior" in out
    with Path("out/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == sorted(float(row["mean"]) for row in rows)
    assert float(rows[0]["difference"]) == best.difference.mean  # type: ignore[union-attr]
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
