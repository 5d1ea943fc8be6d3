"""Figures of a comparison: all seeds of each group and paired differences, curves, and the metric over a cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mom.config import CompareConfig
from mom.plots.style import (
    MODULE_COLORS,
    ROUNDING,
    label_points,
    legend_above,
    new_figure,
    series_style,
    styled,
    write_figure,
)
from mom.runs.comparison import Comparison
from mom.runs.curves import read_curves

MOST_CURVES = 12
"""A comparison of more groups has no figure of curves, which could not be told apart."""
LABEL_WIDTH = 44
"""Characters per line of a group's label; longer labels are wrapped."""


def write_figures(comparison: Comparison, task: CompareConfig, labels: Sequence[str], path: Path) -> None:
    """Write the figures, as ``.png`` and ``.svg``: groups, curves, and with ``task.cost_metric`` the metric over cost.

    Args:
        comparison: the groups and their differences.
        task: metric, baseline, and confidence, for the axes.
        labels: a label per group.
        path: path of the files without a suffix; ``_curves`` and ``_by_cost`` are appended for the others.
    """
    figures = {path.name: draw(comparison, task, labels)}
    if task.cost_metric is not None:
        figures[f"{path.name}_by_cost"] = draw_by_cost(comparison, task, labels)
    if (curves := draw_curves(comparison, task, labels)) is not None:
        figures[f"{path.name}_curves"] = curves
    for name, figure in figures.items():
        write_figure(figure, path.with_name(f"{name}.png"), dpi=150)


@styled
def draw(comparison: Comparison, task: CompareConfig, labels: Sequence[str]) -> Figure:
    """Draw the groups, the best at the top.

    The left panel shows each seed's value, the mean, and the standard deviation; the right panel, if there are
    differences, their mean and confidence interval.
    """
    groups = comparison.groups
    has_differences = any(group.difference is not None for group in groups)
    labels = [textwrap.fill(label, LABEL_WIDTH) for label in labels]
    row = max(0.36, 0.18 * max(label.count("\n") + 1 for label in labels))  # inches
    size = (9 if has_differences else 6.5, 1.3 + row * len(groups))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, 2 if has_differences else 1, sharey=True, squeeze=False)[0]
    bar = {"fmt": "|", "color": "black", "capsize": 3, "markersize": 10, "elinewidth": 1}
    for place, group in enumerate(groups):
        values = list(group.values.values())
        panels[0].plot(
            values, [place] * len(values), "o", color=MODULE_COLORS[0], alpha=0.7, markersize=4, zorder=3
        )
        panels[0].errorbar(group.mean, place, xerr=group.deviation, **bar)
    panels[0].set_yticks(range(len(groups)), labels)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    panels[0].set_xlabel(f"{task.metric}\n(each seed, mean ± std)")
    if has_differences:
        _draw_differences(panels[1], comparison, task)
    for panel in panels:
        panel.locator_params(axis="x", nbins=5)
        panel.grid(axis="x", alpha=0.3)
    return figure


def _draw_differences(panel: Axes, comparison: Comparison, task: CompareConfig) -> None:
    """Draw the differences; filled if their interval excludes 0 by more than the rounding of float32."""
    panel.axvline(0, color="gray", linewidth=1)
    rounding = ROUNDING * max(1.0, *(abs(group.mean) for group in comparison.groups))
    for place, group in enumerate(comparison.groups):
        found = group.difference
        if found is None:
            continue
        width = None if found.low is None else found.mean - found.low
        is_clear = width is not None and abs(found.mean) > max(width, rounding)
        panel.errorbar(
            found.mean,
            place,
            xerr=width,
            fmt="o",
            color=MODULE_COLORS[5] if is_clear else "black",
            markerfacecolor=MODULE_COLORS[5] if is_clear else "white",
            capsize=3,
            markersize=5,
        )
    low, high = panel.get_xlim()
    if high - low < 40 * rounding:  # a scale on which rounding looks like nothing
        panel.set_xlim(min(low, -20 * rounding), max(high, 20 * rounding))
    partner = task.reference_metric or "the baseline"
    panel.set_xlabel(f"difference from {partner}\n({task.confidence:.0%} interval; filled: excludes 0)")


@styled
def draw_by_cost(comparison: Comparison, task: CompareConfig, labels: Sequence[str]) -> Figure:
    """Draw the metric over ``task.cost_metric``: the baselines' curve, and the groups by rank."""
    points = [(group.cost, group.mean, group.deviation) for group in comparison.groups]
    costs = [cost for cost, _, _ in points if cost is not None]
    names = [
        textwrap.fill(f"{rank}  {label}", LABEL_WIDTH, subsequent_indent="    ")
        for rank, label in enumerate(labels, 1)
    ]
    num_lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(9, max(4.0, 1.2 + 0.14 * num_lines)), layout="constrained")
    panel, legend = figure.subplots(1, 2, width_ratios=(3, 2))
    curve = sorted(points[index] for index in comparison.baseline)
    panel.plot([x for x, _, _ in curve], [y for _, y, _ in curve], "-", color="gray", linewidth=1, zorder=1)
    for rank, (cost, mean, deviation) in enumerate(points, 1):
        color = "gray" if rank - 1 in comparison.baseline else MODULE_COLORS[0]
        panel.errorbar(cost, mean, yerr=deviation, fmt="o", color=color, markersize=4, elinewidth=1, zorder=2)
    if max(costs) > 3 * min(costs):
        panel.set_xscale("log")
    else:
        panel.locator_params(axis="x", nbins=5)
    panel.set_xlabel(task.cost_metric)
    panel.set_ylabel(f"{task.metric} (mean ± std over seeds)")
    panel.grid(alpha=0.3)
    legend.set_axis_off()
    legend.text(0, 1, "\n".join(names), va="top", fontsize=8, transform=legend.transAxes)
    places = [(cost, mean) for cost, mean, _ in points if cost is not None]
    label_points(
        panel, places, [str(rank) for rank, (cost, _, _) in enumerate(points, 1) if cost is not None]
    )
    return figure


@styled
def draw_curves(comparison: Comparison, task: CompareConfig, labels: Sequence[str]) -> Figure | None:
    """Draw the metric over training: the mean over a group's seeds, and their range; ``None`` without curves.

    Runs of a table have no curves. Of a group whose seeds were validated at different steps, only common steps count.
    """
    lines = []
    for group, label in zip(comparison.groups, labels, strict=True):
        curves = [read_curves(run.folder).get(task.metric) for run in group.runs.values()]
        known = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves if curve is not None]
        steps = sorted(set.intersection(*(set(curve) for curve in known))) if known else []
        if len(steps) > 1:
            lines.append((label, steps, np.array([[curve[step] for step in steps] for curve in known])))
    if not lines or len(lines) > MOST_CURVES:
        return None
    figure = new_figure(f"{task.metric} over training", "", 7.5, 4.2 + 0.2 * len(lines))
    axis = figure.subplots()
    for index, (label, steps, values) in enumerate(lines):
        seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
        style = series_style(index)
        axis.plot(steps, values.mean(axis=0), markersize=4, label=f"{label}{seeds}", **style)
        if len(values) > 1:
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel(f"{task.metric} (mean and range over seeds)")
    axis.grid(alpha=0.3)
    legend_above(axis, columns=1)
    return figure
