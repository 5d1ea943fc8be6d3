"""The figures of a comparison: every seed of every group and the paired differences; the metric over a cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mom.runs.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mom.config import CompareConfig

LABEL_WIDTH = 44
"""Characters of a line of a group's label; longer ones take several lines."""


def draw(comparison: Comparison, task: CompareConfig, labels: Sequence[str], path: Path) -> None:
    """Draw the groups from the best downwards, as ``.png`` and ``.svg``.

    On the left each seed's value, the mean and the standard deviation; on the right, where there are
    differences, their mean and confidence interval.

    Args:
        comparison: what to draw.
        task: metric, baseline and confidence, for the axes.
        labels: of the groups.
        path: the files' name without an ending.
    """
    groups = comparison.groups
    has_differences = any(group.difference is not None for group in groups)
    labels = [textwrap.fill(one, LABEL_WIDTH) for one in labels]
    row = max(0.36, 0.18 * max(one.count("\n") + 1 for one in labels))  # inches
    figure = _figure(9 if has_differences else 6.5, 1.3 + row * len(groups))
    panels = figure.subplots(1, 2 if has_differences else 1, sharey=True, squeeze=False)[0]
    places = range(len(groups))
    for place, group in zip(places, groups, strict=True):
        values = list(group.values.values())
        panels[0].plot(
            values, [place] * len(values), "o", color="tab:blue", alpha=0.7, markersize=4, zorder=3
        )
        panels[0].errorbar(
            group.mean,
            place,
            xerr=group.deviation,
            fmt="|",
            color="black",
            capsize=3,
            markersize=10,
            elinewidth=1,
        )
    panels[0].set_yticks(places, labels)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    panels[0].set_xlabel(f"{task.metric}\n(each seed, mean ± std)")
    if has_differences:
        _draw_differences(panels[1], comparison, task)
    for panel in panels:
        panel.locator_params(axis="x", nbins=5)
        _plain_axes(panel, "x")
    _save(figure, path)


def draw_by_cost(comparison: Comparison, task: CompareConfig, labels: Sequence[str], path: Path) -> None:
    """Draw the metric over ``task.cost_metric`` as ``.png`` and ``.svg``: the baselines' curve, groups by rank.

    Args:
        comparison: what to draw.
        task: metric, cost and baseline, for the axes.
        labels: of the groups.
        path: the files' name without an ending.
    """
    groups = comparison.groups
    points = [(group.cost, group.mean, group.deviation) for group in groups]
    costs = [cost for cost, _, _ in points if cost is not None]
    names = [
        textwrap.fill(f"{rank}  {one}", LABEL_WIDTH, subsequent_indent="    ")
        for rank, one in enumerate(labels, 1)
    ]
    num_lines = sum(one.count("\n") + 1 for one in names)
    figure = _figure(9, max(4.0, 1.2 + 0.14 * num_lines))
    panel, legend = figure.subplots(1, 2, width_ratios=(3, 2))
    curve = sorted(points[index] for index in comparison.baseline)
    panel.plot([x for x, _, _ in curve], [y for _, y, _ in curve], "-", color="gray", linewidth=1, zorder=1)
    for rank, (cost, mean, deviation) in enumerate(points, 1):
        color = "gray" if rank - 1 in comparison.baseline else "tab:blue"
        panel.errorbar(cost, mean, yerr=deviation, fmt="o", color=color, markersize=4, elinewidth=1, zorder=2)
        panel.annotate(str(rank), (cost, mean), xytext=(4, 3), textcoords="offset points", fontsize=8)
    if max(costs) > 3 * min(costs):
        panel.set_xscale("log")
    panel.set_xlabel(task.cost_metric)
    panel.set_ylabel(f"{task.metric} (mean ± std over seeds)")
    _plain_axes(panel, "both")
    legend.set_axis_off()
    legend.text(0, 1, "\n".join(names), va="top", fontsize=8, transform=legend.transAxes)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """An empty figure in inches, outside of pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain_axes(panel: Axes, grid: Literal["x", "both"]) -> None:
    panel.grid(axis=grid, alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    for ending in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=150)


def _draw_differences(panel: Axes, comparison: Comparison, task: CompareConfig) -> None:
    panel.axvline(0, color="gray", linewidth=1)
    for place, group in enumerate(comparison.groups):
        found = group.difference
        if found is None:
            continue
        width = None if found.low is None else found.mean - found.low
        panel.errorbar(found.mean, place, xerr=width, fmt="o", color="tab:red", capsize=3, markersize=4)
    partner = task.reference_metric or "the baseline"
    panel.set_xlabel(f"difference from {partner}\n({task.confidence:.0%} interval)")
