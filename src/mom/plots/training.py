"""Figures over training, drawn from the ``metrics.csv`` of a run or phase, at its end or at any later time."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mom.metrics.names import EXACT_MATCH, pool_label
from mom.plots.style import (
    MODULE_COLORS,
    SKIP_COLOR,
    is_constant,
    legend_above,
    new_figure,
    series_style,
    smoothed,
    styled,
    write_figure,
)
from mom.runs.curves import Curve, read_curves
from mom.runs.describe import describe_run

Curves = Mapping[str, Curve]

_COLUMNS = 2
_FROM_0 = ("learning rate", "exact match", "SKIP", "fraction", "share")  # panels whose axis starts at 0
_MARKED = 40  # a line of more points has no markers


class Line(NamedTuple):
    """A line of a panel: its label, its curve at validations, and its curve at training steps (thinner)."""

    label: str
    validation: Curve | None
    training: Curve | None = None


def draw_training(folder: str | Path, dpi: int = 120) -> dict[str, Path]:
    """Draw what a run's or phase's ``metrics.csv`` holds so far, and return the PNG files by name.

    Writes ``figures/loss.png`` and ``figures/training.png``, each also as ``.svg``; nothing without such a file. A run
    that was interrupted, or trained elsewhere, can be drawn like a finished one.

    Raises:
        UsageError: the file cannot be read.
    """
    folder = Path(folder)
    curves = read_curves(folder)
    run = describe_run(folder)
    phases = {phase: read_curves(folder / phase) for phase in ("plain", "baseline")}
    figures = {"loss": loss_curves(curves, phases, run=run), "training": training_curves(curves, run=run)}
    return {
        name: write_figure(figure, folder / "figures" / f"{name}.png", dpi)
        for name, figure in figures.items()
        if figure is not None
    }


@styled
def loss_curves(
    curves: Curves, phases: Mapping[str, Curves] | None = None, *, run: str = ""
) -> Figure | None:
    """Draw the loss over optimizer steps: training, smoothed, and validation; ``None`` if neither was logged.

    Args:
        curves: the run's curves by metric.
        phases: those of its other phases by name. The validation loss of ``baseline`` is drawn, and the last one of
            ``plain``, from which the run started.
        run: the run's name.
    """
    training = curves.get("train/lm_loss", curves.get("train/loss"))
    validation = curves.get("val/loss")
    if training is None and validation is None:
        return None
    figure = new_figure("Loss over training", run, 6.4, 4.4)
    axis = figure.subplots()
    drawn: list[NDArray[np.float64]] = []
    if training is not None:
        smooth, span = smoothed(training.values)
        if span > 1:
            axis.plot(*training, color=MODULE_COLORS[0], linewidth=0.7, alpha=0.35)
        label = f"training (mean of {span} logged steps)" if span > 1 else "training"
        axis.plot(training.steps, smooth, color=MODULE_COLORS[0], linewidth=1.6, label=label)
        drawn.append(smooth)
    if validation is not None:
        best = int(np.nanargmin(validation.values)) if np.isfinite(validation.values).any() else -1
        label = f"validation (best {validation.values[best]:.3f} at step {validation.steps[best]:,.0f})"
        _plot(axis, validation, label, {**series_style(1), "color": MODULE_COLORS[5], "linestyle": "--"})
        drawn.append(validation.values)
    others = phases or {}
    if (baseline := others.get("baseline", {}).get("val/loss")) is not None:
        _plot(
            axis,
            baseline,
            "plain baseline, validation",
            {**series_style(2), "color": "black", "linestyle": ":"},
        )
        drawn.append(baseline.values)
    if (start := others.get("plain", {}).get("val/loss")) is not None:
        value = float(start.values[-1])
        axis.axhline(value, color=SKIP_COLOR, linestyle="-.", label=f"start: plain transformer, {value:.3f}")
        drawn.append(start.values[-1:])
    # The first steps of a new model are far above all others.
    known = np.concatenate(drawn)
    known = known[np.isfinite(known)]
    if known.size > 10:
        low, high = float(known.min()), float(np.percentile(known, 98))
        axis.set_ylim(low - 0.06 * (high - low), high + 0.08 * (high - low))
    _step_axis(axis)
    axis.set_ylabel("loss (nats/token)")
    legend_above(axis, columns=1)
    return figure


@styled
def training_curves(curves: Curves, *, run: str = "") -> Figure | None:
    """Draw learning rate, score, depth, SKIP rate, and loads over optimizer steps, a panel each.

    A panel shows validations (with markers) and, thinner, training steps, which routing noise and exploration also
    change. What never changes is not drawn but said in a line; ``None`` if nothing else was logged.
    """
    panels: list[tuple[str, list[Line]]] = []
    constant: list[str] = []
    for title, lines in _panels(curves):
        varied, same = [], []
        for line in lines:
            values = _values(line)
            if not is_constant(values):
                varied.append(line)
            elif np.isfinite(values).any():
                same.append(f"{line.label} {values[np.isfinite(values)][0]:.3g}")
        if same:
            constant.append(f"{title.split(' (')[0]}: {', '.join(same)}")
        if varied:
            panels.append((title, varied))
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure("Over training", run, 4.6 * columns, 1.0 + 2.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    steps = [curve.steps for _, lines in panels for line in lines for curve in line[1:] if curve is not None]
    end = max(float(part[-1]) for part in steps)
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        for index, line in enumerate(lines):
            _draw_line(axis, line, index)
        if title.startswith("depth") and (graph := curves.get("depth/graph")) is not None:
            label = f"graph {graph.values[-1]:g}"
            axis.axhline(graph.values[-1], color=SKIP_COLOR, linestyle=":", linewidth=1.6, label=label)
        axis.set_title(title, loc="left", pad=6 + 14 * -(-len(axis.get_legend_handles_labels()[0]) // 3))
        axis.set_xlim(0, 1.02 * end)
        if title.startswith(_FROM_0):
            axis.set_ylim(bottom=0)
        _step_axis(axis)
        legend_above(axis)
    notes = []
    if any(
        line.validation is not None and line.training is not None for _, lines in panels for line in lines
    ):
        notes.append("With markers: validations. Thin: logged training steps, smoothed.")
    if constant:
        notes.append(f"Constant, so not drawn: {'; '.join(constant)}.")
    width = round(12.5 * figure.get_figwidth())
    figure.supxlabel("\n".join(_wrapped(notes, width)), fontsize=9, x=0.02, ha="left")
    return figure


def _values(line: Line) -> NDArray[np.float64]:
    """Return the values that tell whether a line is constant: those of validations if there are several."""
    if line.validation is not None and (line.training is None or len(line.validation.values) > 2):
        return line.validation.values
    return np.concatenate([curve.values for curve in line[1:] if curve is not None])


def _panels(curves: Curves) -> Iterator[tuple[str, list[Line]]]:
    """Yield each panel's title and lines, for the metrics that were logged."""
    yield "learning rate", _learning_rates(curves)
    scores = [name for name in curves if name == "val/score" or f"{name}/".startswith(f"{EXACT_MATCH}/")]
    for group, title in (("score", "score"), ("exact_match", "exact match")):
        own = [name for name in scores if name.split("/")[1] == group]
        yield title, [Line(name.split("/")[-1].replace("_", " "), curves[name]) for name in own]
    yield "depth (blocks)", _lines(curves, {"depth/effective": "effective", "depth/weighted": "weighted"})
    pools = list(
        dict.fromkeys(found[1] for name in curves if (found := re.match(r"(?:val/)?routing/(\w+)/", name)))
    )
    for metric, title in (
        ("skip_rate", "SKIP: fraction of steps without a module"),
        ("load_max_over_mean", "load of the busiest module / mean"),
        ("dead_fraction", "fraction of modules without a token"),
        ("entropy", "entropy of the router (1: undecided)"),
        ("token_dependence", "share of the choice that the token's ID determines"),
        ("first_weight", "weight of the first choice"),
    ):
        yield title, _lines(curves, {f"routing/{pool}/{metric}": pool_label(pool) for pool in pools})
    for name in sorted(curves):
        if name.startswith("schedule/"):
            yield name.removeprefix("schedule/").replace("_", " "), [Line("schedule", None, curves[name])]


def _lines(curves: Curves, labels: Mapping[str, str]) -> list[Line]:
    found = [Line(label, curves.get(f"val/{name}"), curves.get(name)) for name, label in labels.items()]
    return [line for line in found if line.validation is not None or line.training is not None]


def _learning_rates(curves: Curves) -> list[Line]:
    """Return a line for each group of parameters, those with the same rates together."""
    lines: list[Line] = []
    for name in sorted(name for name in curves if name.startswith("learning_rate/")):
        label, curve = name.split("/")[1].replace("_", " "), curves[name]
        same = (
            index
            for index, line in enumerate(lines)
            if line.training is not None
            and np.array_equal(line.training.values, curve.values, equal_nan=True)
        )
        index = next(same, None)
        if index is None:
            lines.append(Line(label, None, curve))
        else:
            lines[index] = lines[index]._replace(label=f"{lines[index].label}, {label}")
    return [lines[0]._replace(label="all parameters")] if len(lines) == 1 else lines


def _draw_line(axis: Axes, line: Line, index: int) -> None:
    style = series_style(index)
    if line.training is not None:
        thin = line.validation is not None
        axis.plot(
            line.training.steps,
            smoothed(line.training.values)[0] if thin else line.training.values,
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=0.8 if thin else 1.6,
            alpha=0.6 if thin else 1.0,
            label=None if thin else line.label,
        )
    if line.validation is not None:
        _plot(axis, line.validation, line.label, style)


def _plot(axis: Axes, curve: Curve, label: str, style: Mapping[str, Any]) -> None:
    options = dict(style)
    if len(curve.steps) > _MARKED:
        options.pop("marker", None)
    axis.plot(curve.steps, curve.values, label=label, linewidth=1.6, markersize=4, **options)


def _step_axis(axis: Axes) -> None:
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.grid(axis="y", alpha=0.25)


def _wrapped(lines: list[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, width)]
