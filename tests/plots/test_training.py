"""Figures over training: drawn from ``metrics.csv`` as it is, without what never changes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from mom.plots.style import is_constant, smoothed
from mom.plots.training import draw_training, loss_curves, training_curves
from mom.runs.curves import Curve, read_curves
from tests.helpers.figures import collisions, texts

STEPS = np.arange(10, 310, 10)


def curve(values: object, every: int = 1) -> Curve:
    steps = STEPS[every - 1 :: every].astype(float)
    return Curve(steps, np.broadcast_to(np.asarray(values, dtype=float), steps.shape))


def a_run(**others: Curve) -> dict[str, Curve]:
    noise = np.random.default_rng(0).normal(size=30)
    falling, validated = np.linspace(0, 1, 30), np.linspace(0, 1, 15)
    return {
        "train/lm_loss": curve(4 - falling + 0.1 * noise),
        "val/loss": curve(4 - validated, 2),
        "learning_rate/matrices": curve(1e-3 * (1 - falling)),
        "learning_rate/vectors": curve(1e-3 * (1 - falling)),
        "depth/graph": curve(8),
        "depth/effective": curve(8 + 1e-7 * noise),
        "val/depth/effective": curve(8, 2),
        "depth/weighted": curve(8 - falling),
        "val/depth/weighted": curve(8 - validated, 2),
        **{f"val/routing/{pool}/skip_rate": curve(0.3 * validated, 2) for pool in ("attention", "ffn")},
        "routing/ffn/load_max_over_mean": curve(1.5 + 0.1 * noise),
        "routing/ffn/dead_fraction": curve(0),
        **others,
    }


def write(folder: Path, curves: dict[str, Curve], tail: str = "") -> Path:
    rows: dict[int, dict[str, float]] = {}
    for name, (steps, values) in curves.items():
        for step, value in zip(steps, values, strict=True):
            rows.setdefault(int(step) - 1, {})[name] = float(value)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *curves], restval="")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(rows.items()))
        file.write(tail)
    return folder


def test_the_curves_of_a_file_are_those_that_were_logged(tmp_path: Path) -> None:
    curves = a_run()
    found = read_curves(write(tmp_path, curves, tail="299,9.9"))  # half a line of a killed process
    assert found.keys() == curves.keys()
    for name, (steps, values) in curves.items():
        assert found[name].steps.tolist() == steps.tolist(), name
        assert found[name].values.tolist() == values.tolist(), name
    assert read_curves(tmp_path / "nothing") == {}


def test_the_loss_is_smoothed_and_the_best_validation_named() -> None:
    curves = a_run()
    phases = {"plain": {"val/loss": curve([5, 4.5], 15)}, "baseline": {"val/loss": curve(4.2, 2)}}
    figure = loss_curves(curves, phases, run="a run")
    assert figure is not None
    raw, smooth, validation, baseline, start = figure.axes[0].lines
    values = curves["train/lm_loss"].values
    assert raw.get_ydata().tolist() == values.tolist()
    assert smooth.get_ydata()[2] == pytest.approx(values[:3].mean())
    assert smooth.get_ydata()[20] == pytest.approx(values[16:21].mean())
    assert validation.get_ydata().tolist() == curves["val/loss"].values.tolist()
    assert set(baseline.get_ydata()) == {4.2} and set(start.get_ydata()) == {4.5}
    assert "validation (best 3.000 at step 300)" in texts(figure)
    assert "training (mean of 5 logged steps)" in texts(figure)
    assert (
        len({(line.get_linestyle(), line.get_marker()) for line in (smooth, validation, baseline, start)})
        == 4
    )


def test_what_never_changes_is_said_and_not_drawn() -> None:
    figure = training_curves(a_run())
    assert figure is not None
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.axison]
    assert titles == [
        "learning rate",
        "depth (blocks)",
        "SKIP: fraction of steps without a module",
        "load of the busiest module / mean",
    ]
    assert "effective" not in texts(figure) and "weighted" in texts(figure)
    note = figure.get_supxlabel().replace("\n", " ")
    assert "Constant, so not drawn: depth: effective 8; fraction of modules without a token: FFN 0." in note
    (rate,) = figure.axes[0].lines
    assert rate.get_label() == "all parameters"


def test_nothing_to_draw() -> None:
    assert loss_curves({}) is None
    assert training_curves({"depth/effective": curve(8), "train/loss": curve(STEPS)}) is None


@pytest.mark.parametrize(
    "pools", [("attention", "ffn"), ("attention", "causal_convolution", "ffn", "another_ffn")]
)
def test_no_labels_collide(pools: tuple[str, ...]) -> None:
    values = np.linspace(0, 1, 15)
    routed = {f"val/routing/{pool}/skip_rate": curve(values, 2) for pool in pools}
    run = "a-long-name_2026-11-27_02-00-00-abcd: 4 attention + 4 FFN modules, 4 rounds, K = 1, linear router"
    curves = a_run(**routed) | {"val/routing/ffn/entropy": curve(0.5, 2)}
    for figure in (
        loss_curves(curves, {"baseline": curves, "plain": curves}, run=run),
        training_curves(curves, run=run),
    ):
        assert figure is not None
        assert collisions(figure) == []


def test_a_run_is_drawn_again_from_its_file_and_named(tmp_path: Path) -> None:
    model = {"num_stages": 0, "num_bottom_blocks": 8, "num_top_blocks": 0}
    folder = write(tmp_path / "run", a_run())
    request = {"task": {"name": "pretrain"}, "seed": 3, "model": model}
    request["data"] = {"kind": "language_modeling", "corpus": "python_stdlib"}
    (folder / "config.yaml").write_text(yaml.safe_dump(request))
    files = draw_training(folder, dpi=40)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{ending}" for name in ("loss", "training") for ending in ("png", "svg")
    }
    assert imread(files["loss"]).ndim == 3
    before = (folder / "figures" / "loss.svg").read_bytes()
    draw_training(folder, dpi=40)
    assert (folder / "figures" / "loss.svg").read_bytes() == before
    assert draw_training(tmp_path) == {}


def test_smoothing_skips_nan_and_rounding_is_constant() -> None:
    values, span = smoothed(np.array([1.0, np.nan, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0]))
    assert span == 2
    assert values.tolist() == [1, 1, 3, 4, 6, 8, 10, 12]
    assert is_constant([8, 8.000001, np.nan]) and not is_constant([8, 8.01])
