"""Figures of the routers' choices: their value, regret, and dependence, and depth by group of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom.metrics.choice_value import REPLACEMENTS, ChoiceValue
from mom.metrics.dependence import Dependence
from mom.metrics.difficulty import DepthOfGroup
from mom.metrics.names import DEFAULT_POOLS, pool_label
from mom.metrics.regret import Regret
from mom.plots.style import MODULE_COLORS, new_figure, series_style, styled

_ASIDE = 0.07  # rounds


@styled
def choice_value(
    values: Sequence[ChoiceValue], *, run: str = "", pools: Sequence[str] = DEFAULT_POOLS
) -> Figure:
    """Draw the loss increase by round for each replacement, with standard errors, a panel for each pool."""
    figure, axes = _by_round("Value of the choice", run, pools)
    for axis, pool in zip(axes, pools, strict=True):
        for index, name in enumerate(REPLACEMENTS):
            own = [v for v in values if (v.kind, v.replacement) == (pool, name) and v.round is not None]
            # Side by side, so that error bars do not hide each other.
            aside = _ASIDE * (index - (len(REPLACEMENTS) - 1) / 2)
            axis.errorbar(
                [number + aside for number in _rounds(value.round for value in own)],
                [value.increase for value in own],
                yerr=np.nan_to_num([value.error for value in own]),
                label=name,
                capsize=2,
                **series_style(index),
            )
    axes[0].set_ylabel("loss increase (nats/token)")
    _legend(axes[-1])
    return figure


@styled
def regret(
    regrets: Mapping[tuple[str, int | None], Regret], *, run: str = "", pools: Sequence[str] = DEFAULT_POOLS
) -> Figure:
    """Draw mean regret and the mean change of other choices by round, a panel for each pool."""
    figure, axes = _by_round("Another choice in one round", run, pools)
    for axis, pool in zip(axes, pools, strict=True):
        rounds = _rounds(number for kind, number in regrets if kind == pool)
        for index, (name, label) in enumerate(
            (("regret", "best choice saves"), ("change", "other choice costs"))
        ):
            axis.plot(
                rounds,
                [getattr(regrets[pool, number], name) for number in rounds],
                label=label,
                **series_style(index),
            )
    axes[0].set_ylabel("summed loss (nats)")
    _legend(axes[-1])
    return figure


@styled
def dependence(
    measured: Sequence[Dependence], *, run: str = "", pools: Sequence[str] = DEFAULT_POOLS
) -> Figure:
    """Draw by round the share of the choice's entropy that each attribute determines, a panel for each pool."""
    figure, axes = _by_round("What the choice depends on", run, pools)
    names = list(dict.fromkeys(item.attribute for item in measured if item.round is not None))
    for axis, pool in zip(axes, pools, strict=True):
        for index, name in enumerate(names):
            own = [m for m in measured if (m.kind, m.attribute) == (pool, name) and m.round is not None]
            axis.plot(
                _rounds(item.round for item in own),
                [item.share for item in own],
                label=name.replace("_", " "),
                **series_style(index),
            )
        axis.set_ylim(-0.05, 1.05)
    axes[0].set_ylabel("share of the entropy")
    _legend(axes[-1])
    return figure


@styled
def depth_by_group(groups: Sequence[DepthOfGroup], *, run: str = "") -> Figure:
    """Draw a bar of the modules per token for each group, the groupings below each other."""
    figure = new_figure("Modules by group of tokens", run, 6.4, 1.6 + 0.3 * len(groups))
    axis = figure.subplots()
    by = list(dict.fromkeys(row.by for row in groups))
    colors = [MODULE_COLORS[by.index(row.by) % len(MODULE_COLORS)] for row in groups]
    axis.barh(range(len(groups)), [row.modules_per_token for row in groups], color=colors)
    labels = [f"{row.by.replace('_', ' ')}: {row.group} ({row.tokens:,})" for row in groups]
    axis.set_yticks(range(len(groups)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("modules per token")
    return figure


def _by_round(title: str, run: str, pools: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with a panel for each pool and rounds along the horizontal axis."""
    figure = new_figure(title, run, 3.2 * len(pools) + 2.2, 3.6)
    axes = figure.subplots(1, len(pools), sharey=True, squeeze=False)[0]
    for axis, pool in zip(axes, pools, strict=True):
        axis.set_title(pool_label(pool))
        axis.set_xlabel("round")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.axhline(0, color="black", linewidth=0.8)
    return figure, list(axes)


def _rounds(numbers: Iterable[int | None]) -> list[int]:
    return [number for number in numbers if number is not None]


def _legend(axis: Axes) -> None:
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
