"""Figures of routing: functions from arrays to a matplotlib ``Figure``, without side effects.

Shapes: S stages, H rounds in a stage, R = S·H rounds over all stages in order, N modules in a pool (pools may differ),
P points in training time. Choices are the N modules, then SKIP: ``[..., N]`` is SKIP. Counts may have any dtype and
scale, because only fractions are drawn; padding does not count. Rounds, stages, and modules are numbered from 0, as in
the routing records.

- *use*: [R, N+1], assignments to each choice (an assignment is one of a token's K choices in one round), by round.
- *flow*: [R-1, N+1, N+1], tokens by their first choice in round r and in round r+1.
- *use over time*: [P, S, N+1], assignments to each choice of each stage's pool, around each of P optimizer steps.

``run`` is the run's name, shown below every title.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from mom.metrics.sums import Floats, as_floats, row_shares
from mom.plots.style import (
    HEAT,
    LINE_STYLES,
    MARKERS,
    MODULE_COLORS,
    SKIP_COLOR,
    new_figure,
    smoothed,
    styled,
)

Pools = Mapping[str, ArrayLike]
"""An array for each pool, by its label in the figure."""

_LABELED_NODE = 0.06  # fraction of the tokens from which a node has room for its name
_ON_COLOR: Any = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}

ANNOTATED_SLOTS = 12
"""Heat maps of up to this many columns also show the numbers."""


@styled
def module_use(use: Pools, *, run: str = "", num_stages: int = 1) -> Figure:
    """Draw the modules that each round uses, [R, N+1]: a heat map for each pool, with a line between stages."""
    pools = _checked(use, dimensions=2)
    rounds = len(pools[0][1])
    widths = [min(6.5, max(2.6, 0.62 * array.shape[1])) for _, array in pools]
    figure = new_figure("Module use by round", run, sum(widths) + 2.0, max(3.0, 0.38 * rounds + 1.7))
    axes = figure.subplots(1, len(pools), sharey=True, width_ratios=widths, squeeze=False)[0]
    highest = _highest(*(row_shares(array) for _, array in pools))
    for axis, (name, array) in zip(axes, pools, strict=True):
        image = _heat(axis, row_shares(array), highest)
        axis.set_title(name)
        axis.set_xlabel("module")
        for stage in range(1, num_stages):
            axis.axhline(stage * rounds / num_stages - 0.5, color="white", linewidth=3)
    axes[0].set_ylabel("round" if num_stages == 1 else "stage.round")
    axes[0].set_yticks(range(rounds), _rounds(rounds, num_stages))
    _color_bar(figure, image, axes, highest, "fraction of the round's assignments")
    return figure


@styled
def module_flow(flow: Pools, *, run: str = "", num_stages: int = 1) -> Figure:
    """Draw the flow of tokens between modules from round to round, [R-1, N+1, N+1], by their first choice.

    Pools of up to eight modules are drawn as bands, as wide as their fraction of the tokens and colored by their
    origin. For larger pools, where bands would hide each other, a heat map shows the transitions of all rounds
    together, except those between stages.
    """
    pools = _checked(flow, dimensions=3)
    pairs = len(pools[0][1])
    if max(array.shape[1] for _, array in pools) - 1 > len(MODULE_COLORS):
        return _transitions(pools, run, num_stages)
    figure = new_figure(
        "Flow between modules, by first choice", run, max(5.0, 0.8 * pairs + 3.0), 3.3 * len(pools)
    )
    axes = figure.subplots(len(pools), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, array) in zip(axes, pools, strict=True):
        _bands(axis, array)
        labels = _slots(array.shape[1])
        colors = _slot_colors(array.shape[1])
        handles = [Patch(color=color, label=label) for color, label in zip(colors, labels, strict=True)]
        axis.legend(handles=handles[::-1], title="module", loc="center left", bbox_to_anchor=(1.0, 0.5))
        axis.set_title(name)
        axis.set_ylabel("fraction of tokens")
    axes[-1].set_xlabel("round" if num_stages == 1 else "stage.round")
    axes[-1].set_xticks(range(pairs + 1), _rounds(pairs + 1, num_stages))
    return figure


@styled
def use_over_time(steps: ArrayLike, use: Pools, *, run: str = "") -> Figure:
    """Draw the use of modules over training, [P, S, N+1] at ascending steps [P], with a row of panels per stage.

    Lines are smoothed, because single steps differ much.
    """
    steps = as_floats(steps)
    pools = _checked(use, dimensions=3)
    num_stages = pools[0][1].shape[1]
    same_slots = len({array.shape[-1] for _, array in pools}) == 1
    figure = new_figure("Module use over training, smoothed", run, 3.8 * len(pools), 1.0 + 2.8 * num_stages)
    axes = figure.subplots(num_stages, len(pools), sharex=True, squeeze=False)
    for column, (name, array) in enumerate(pools):
        for stage in range(num_stages):
            axis = axes[stage, column]
            shares = row_shares(array[:, stage])
            if shares.shape[1] - 1 > len(MODULE_COLORS):
                highest = _highest(shares)
                slots = range(shares.shape[1])
                mesh = axis.pcolormesh(
                    steps, slots, shares.T, cmap=HEAT, shading="nearest", vmin=0, vmax=highest
                )
                axis.set_yticks(*_slot_ticks(len(slots)))
                axis.set_ylabel("module")
                _color_bar(figure, mesh, axis, highest, "fraction of assignments")
            else:
                _lines(axis, steps, shares)
                axis.set_ylabel("fraction of assignments")
                if column == len(pools) - 1 or not same_slots:
                    axis.legend(title="module", loc="center left", bbox_to_anchor=(1.0, 0.5))
            axis.set_title(name if num_stages == 1 else f"{name}, stage {stage}")
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    return figure


def _bands(axis: Axes, flow: Floats) -> None:
    """Draw the choices of each round as a stack, SKIP at the top, and bands to the choices of the next round."""
    pairs, slots, _ = flow.shape
    shares = flow / np.maximum(flow.sum(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    colors = _slot_colors(slots)
    gap, half = 0.02, 0.09
    smooth = np.linspace(0, 1, 30)
    ease = smooth * smooth * (3 - 2 * smooth)
    for pair in range(pairs):
        left, right = (_bottoms(shares[pair].sum(axis=side), gap) for side in (1, 0))
        left_used, right_used = left.copy(), right.copy()
        x = pair + half + (1 - 2 * half) * smooth
        for source in range(slots):
            for target in range(slots):
                width = shares[pair, source, target]
                if width > 0:
                    bottom = left_used[source] + (right_used[target] - left_used[source]) * ease
                    axis.fill_between(
                        x, bottom, bottom + width, color=colors[source], alpha=0.45, linewidth=0
                    )
                left_used[source] += width
                right_used[target] += width
    for place in range(pairs + 1):
        sizes = shares[place].sum(axis=1) if place < pairs else shares[-1].sum(axis=0)
        axis.bar(
            np.full(slots, place),
            sizes,
            bottom=_bottoms(sizes, gap),
            width=2 * half,
            color=colors,
            linewidth=0,
        )
        for label, size, bottom in zip(_slots(slots), sizes, _bottoms(sizes, gap), strict=True):
            if size > _LABELED_NODE:
                middle = bottom + size / 2
                axis.text(
                    place, middle, label, ha="center", va="center", fontsize=7, bbox=_ON_COLOR, zorder=3
                )
    axis.set_xlim(-0.3, pairs + 0.3)
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(bottom=False)


def _bottoms(sizes: Floats, gap: float) -> Floats:
    """Return the bottom of each node in the stack; empty nodes take no space."""
    return np.concatenate([[0.0], np.cumsum(sizes[:-1] + gap * (sizes[:-1] > 0))])


def _transitions(pools: Sequence[tuple[str, Floats]], run: str, num_stages: int) -> Figure:
    """Draw a heat map of the transitions of all rounds together: the next choice by the current choice."""
    figure = new_figure(
        "Flow between modules, by first choice, all rounds together", run, 5.25 * len(pools), 5.2
    )
    axes = figure.subplots(1, len(pools), squeeze=False)[0]
    per_stage = (len(pools[0][1]) + 1) // num_stages
    within = np.arange(len(pools[0][1])) % per_stage != per_stage - 1
    shares = [row_shares(flow[within].sum(axis=0)) for _, flow in pools]
    highest = _highest(*shares)
    for axis, (name, _), share in zip(axes, pools, shares, strict=True):
        image = _heat(axis, share, highest)
        axis.set_yticks(*_slot_ticks(share.shape[1]))
        axis.set_title(name)
        axis.set_xlabel("module of the next round")
        axis.set_ylabel("module")
    _color_bar(figure, image, axes, highest, "fraction of the tokens in the row")
    return figure


def _lines(axis: Axes, steps: Floats, shares: Floats) -> None:
    """Draw a line for each choice, distinguished by color and dashes."""
    labels, colors = _slots(shares.shape[1]), _slot_colors(shares.shape[1])
    for slot, (label, color) in enumerate(zip(labels, colors, strict=True)):
        values, _ = smoothed(shares[:, slot])
        style: dict[str, Any] = {"linestyle": LINE_STYLES[slot % len(LINE_STYLES)]}
        if len(steps) < 25:
            style["marker"] = MARKERS[slot % len(MARKERS)]
        axis.plot(steps, values, color=color, label=label, linewidth=1.6, markersize=4, **style)
    axis.set_ylim(bottom=0)


def _heat(axis: Axes, shares: Floats, highest: float) -> Any:
    """Draw fractions as colors, up to ``highest``, and as percentages if they fit."""
    image = axis.imshow(shares, cmap=HEAT, vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
    axis.set_xticks(*_slot_ticks(shares.shape[1]))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    if shares.shape[1] <= ANNOTATED_SLOTS:
        for (row, column), share in np.ndenumerate(shares):
            color = "black" if share > 0.55 * highest else "white"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=9)
    return image


def _color_bar(figure: Figure, image: Any, axes: Any, highest: float, label: str) -> None:
    ticks = [0, highest / 2, highest]
    bar = figure.colorbar(image, ax=axes, label=label, ticks=ticks, aspect=25, pad=0.02)
    bar.ax.set_yticklabels([f"{100 * tick:.3g}%" for tick in ticks])
    bar.outline.set_visible(False)


def _highest(*shares: Floats) -> float:
    """Return the maximum of a color scale: the largest fraction, rounded up to a tenth."""
    greatest = max((float(array.max()) for array in shares if array.size), default=1.0)
    return min(1.0, max(0.1, float(np.ceil(10 * greatest - 1e-9)) / 10))


def _checked(pools: Pools, *, dimensions: int) -> list[tuple[str, Floats]]:
    """Return the arrays of the pools.

    Raises:
        ValueError: an array has another number of dimensions, or their lengths differ.
    """
    arrays = [(name, as_floats(array)) for name, array in pools.items()]
    for name, array in arrays:
        if array.ndim != dimensions:
            raise ValueError(f"array of {name} must have {dimensions} dimensions, got {array.ndim}")
        if len(array) != len(arrays[0][1]):
            raise ValueError(
                f"arrays of {arrays[0][0]} and {name} must have the same length, "
                f"got {len(arrays[0][1])} and {len(array)}"
            )
    return arrays


def _slots(number: int) -> list[str]:
    return [*(str(module) for module in range(number - 1)), "SKIP"]


def _slot_colors(number: int) -> list[str]:
    return [*MODULE_COLORS[: number - 1], SKIP_COLOR]


def _rounds(number: int, num_stages: int) -> list[str]:
    per_stage = number // num_stages
    if num_stages == 1:
        return [str(index) for index in range(number)]
    return [f"{index // per_stage}.{index % per_stage}" for index in range(number)]


def _slot_ticks(number: int) -> tuple[list[int], list[str]]:
    """Return the choices to label, so that labels do not overlap, and their labels; SKIP is always labeled."""
    step = 1 if number <= 13 else int(np.ceil(number / 10))
    places = [*range(0, number - max(2, step) if step > 1 else number - 1, step), number - 1]
    names = _slots(number)
    return places, [names[place] for place in places]
