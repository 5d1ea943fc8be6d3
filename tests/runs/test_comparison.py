"""Comparisons of runs against pandas and SciPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mom.errors import UsageError
from mom.runs.comparison import compare, paired
from mom.runs.records import find_runs, write_table
from tests.helpers.runs import write_grid, write_record


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
