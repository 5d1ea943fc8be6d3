"""Figures of a comparison: a difference of rounding is not marked, labels do not collide, curves are means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mom.config import CompareConfig
from mom.plots.comparison import draw, draw_by_cost, draw_curves
from mom.plots.style import MODULE_COLORS
from mom.runs.comparison import Comparison, Group, paired
from mom.runs.records import Run
from tests.helpers.figures import collisions


def group(name: str, values: list[float], baseline: list[float]) -> Group:
    ours, theirs = dict(enumerate(values)), dict(enumerate(baseline))
    return Group((name,), {}, ours, {}, theirs, paired(ours, theirs))


@pytest.mark.parametrize(
    ("shift", "noise", "filled"),
    [(5e-7, 1e-9, False), (0.1, 0.001, True), (0.1, 0.5, False)],
)
def test_only_a_difference_that_excludes_zero_is_filled(shift: float, noise: float, filled: bool) -> None:
    plain = [4.0, 4.1, 4.2]
    other = [value - shift + noise * (seed - 1) for seed, value in enumerate(plain)]
    groups = (group("mom", other, plain), Group(("plain",), {}, dict(enumerate(plain)), {}))
    figure = draw(Comparison(("arm",), {}, groups, (1,), ()), CompareConfig(runs="x"), ["mom", "plain"])
    panel = figure.axes[1]
    (point,) = [line for line in panel.lines if line.get_marker() == "o"]
    assert (point.get_markerfacecolor() == MODULE_COLORS[5]) is filled
    if shift < 1e-6:
        low, high = panel.get_xlim()
        assert shift < 0.01 * (high - low), "rounding looks like a difference"
    assert collisions(figure) == []


def test_labels_of_close_points_do_not_collide() -> None:
    groups = tuple(
        dataclasses.replace(group(str(n), [3.0 + n // 5 / 1000], [3.0]), costs={0: 100.0 + n % 5 / 100})
        for n in range(10)
    )
    task = CompareConfig(runs="x", baseline=["x", "y"], cost_metric="cost")
    figure = draw_by_cost(Comparison(("arm",), {}, groups, (0,), ()), task, [str(n) for n in range(10)])
    assert collisions(figure) == []
    assert {text.get_text() for text in figure.axes[0].texts if text.get_text()} == {
        str(rank) for rank in range(1, 11)
    }


def test_curves_are_means_over_seeds_at_common_steps(tmp_path: Path) -> None:
    def a_run(name: str, rows: dict[int, float]) -> Run:
        (tmp_path / name).mkdir()
        lines = "".join(f"{step - 1},{value}\n" for step, value in rows.items())
        (tmp_path / name / "metrics.csv").write_text(f"step,val/loss\n{lines}")
        return Run(tmp_path / name, {}, 0, {}, {})

    runs = {0: a_run("a", {10: 4.0, 20: 3.0, 25: 1.0}), 1: a_run("b", {10: 5.0, 20: 2.0})}
    groups = (
        Group(("mom",), runs, {0: 3.0, 1: 2.0}, {}),
        Group(("plain",), {0: a_run("c", {10: 4.5, 20: 4.0})}, {0: 4.0}, {}),
    )
    task = CompareConfig(runs="x")
    figure = draw_curves(Comparison(("arm",), {}, groups, (), ()), task, ["mom", "plain"])
    assert figure is not None and collisions(figure) == []
    mom, plain = figure.axes[0].lines
    assert (list(mom.get_xdata()), list(mom.get_ydata())) == ([10, 20], [4.5, 2.5])
    assert list(plain.get_ydata()) == [4.5, 4.0]
    assert mom.get_label() == "mom (2 seeds)"
    (tmp_path / "study.csv").touch()
    table = (Group(("mom",), {0: Run(tmp_path / "study.csv" / "mom", {}, 0, {}, {})}, {0: 3.0}, {}),)
    assert draw_curves(Comparison(("arm",), {}, table, (), ()), task, ["mom"]) is None
