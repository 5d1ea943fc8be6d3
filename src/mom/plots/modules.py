"""Figures of single modules: their similarity, and the loss after their ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom.metrics.modules import Pair, Removal
from mom.metrics.names import DEFAULT_POOLS, pool_label
from mom.plots.style import HEAT, MARKERS, MODULE_COLORS, new_figure, styled

_COLORS = [MODULE_COLORS[index] for index in (0, 5, 2, 3, 4, 1, 6, 7)]
"""Colors of the pools, in the order of a round."""
_Styles = Mapping[str, Mapping[str, Any]]
"""Color and marker of each pool."""

_ANNOTATED_MODULES = 8
_LABELED_STEPS = 16


@styled
def similarity(
    pairs: Sequence[Pair], *, run: str = "", stage: int = 0, pools: Sequence[str] = DEFAULT_POOLS
) -> Figure:
    """Draw heat maps of the similarity of a stage's modules, with a row for each pool.

    Columns: weights, outputs, CKA, as :mod:`mom.analysis.interventions` defines them. Colors range from 0 to 1;
    negative values are drawn as 0. Small heat maps also show the numbers.
    """
    names = {
        "weights": "weights (cosine)",
        "outputs": "outputs (mean cosine)",
        "cka": "outputs (linear CKA)",
    }
    figure = new_figure(f"Similarity of modules, stage {stage}", run, 9.4, 3.1 * len(pools))
    axes = figure.subplots(len(pools), len(names), squeeze=False)
    for row, pool in zip(axes, pools, strict=True):
        in_pool = [pair for pair in pairs if (pair.first.stage, pair.first.kind) == (stage, pool)]
        size = 1 + max((pair.second.number for pair in in_pool), default=0)
        for axis, (name, title) in zip(row, names.items(), strict=True):
            table = np.eye(size)
            for pair in in_pool:
                cell = (pair.first.number, pair.second.number)
                table[cell] = table[cell[::-1]] = getattr(pair, name)
            image = axis.imshow(table, cmap=HEAT, vmin=0, vmax=1)
            ticks = range(0, size, 1 if size <= 2 * _ANNOTATED_MODULES else int(np.ceil(size / 12)))
            axis.set_xticks(ticks)
            axis.set_yticks(ticks)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(f"{pool_label(pool)}: {title}")
            if size <= _ANNOTATED_MODULES:
                for (first, second), value in np.ndenumerate(table):
                    color = "black" if value > 0.55 else "white"
                    axis.text(
                        second, first, f"{value:z.2f}", ha="center", va="center", color=color, fontsize=9
                    )
        row[0].set_ylabel("module")
    for axis in axes[-1]:
        axis.set_xlabel("module")
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], fraction=0.03, label="similarity")
    bar.outline.set_visible(False)
    return figure


@styled
def removal(
    measured: Removal,
    *,
    run: str = "",
    tolerance: float | None = None,
    pools: Sequence[str] = DEFAULT_POOLS,
) -> Figure:
    """Draw the loss without each module, and after greedy removal of several.

    Args:
        measured: the result of :func:`mom.analysis.interventions.measure_removal`.
        run: the run's name.
        tolerance: an acceptable loss increase, drawn as a line.
        pools: names of the pools.
    """
    has_curve = bool(measured.greedy)
    size = max(5.5, 1.6 + 0.34 * len(measured.alone)), max(3.8, 1.6 + 0.3 * len(measured.alone))
    figure = new_figure("Loss after module ablation", run, size[0] + 5.0 * has_curve, size[1])
    axes = np.atleast_1d(figure.subplots(1, 1 + has_curve, width_ratios=(1, 1.15)[: 1 + has_curve]))
    styles = {
        pool: {"color": color, "marker": marker}
        for pool, color, marker in zip(pools, _COLORS, MARKERS, strict=False)
    }
    _draw_single(axes[0], measured, tolerance, styles)
    if has_curve:
        _draw_greedy(axes[1], measured, tolerance, styles)
    return figure


def _draw_single(axis: Axes, measured: Removal, tolerance: float | None, styles: _Styles) -> None:
    """Draw a bar for each module, sorted by loss increase, the largest at the top."""
    ranked = sorted(measured.alone, key=measured.alone.__getitem__)
    increase = [measured.alone[module] - measured.loss for module in ranked]
    axis.barh(range(len(ranked)), increase, color=[styles[module.kind]["color"] for module in ranked])
    axis.set_yticks(range(len(ranked)), [str(module) for module in ranked])
    axis.axvline(0, color="black", linewidth=0.8)
    if tolerance is not None:
        axis.axvline(tolerance, color="black", linewidth=1, linestyle=":")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_xlabel("loss increase (nats/token)")
    axis.set_title("one at a time")


def _draw_greedy(axis: Axes, measured: Removal, tolerance: float | None, styles: _Styles) -> None:
    """Draw the loss over the modules removed so far; few are named along the axis, the last one at each point."""
    losses = [measured.loss, *(loss for _, loss in measured.greedy)]
    axis.plot(range(len(losses)), losses, color="#444444", linewidth=1.2, zorder=1)
    axis.plot([0], losses[:1], marker="D", color="black", linestyle="", label="complete model")
    for pool, style in styles.items():
        counts = [count for count, (module, _) in enumerate(measured.greedy, start=1) if module.kind == pool]
        axis.plot(counts, [losses[count] for count in counts], linestyle="", label=pool_label(pool), **style)
    if tolerance is not None:
        axis.axhline(
            measured.loss + tolerance,
            color="black",
            linewidth=1,
            linestyle=":",
            label=f"complete + {tolerance:g}",
        )
    axis.margins(y=0.12)
    if len(measured.greedy) <= _LABELED_STEPS:
        names = ["none", *(str(module) for module, _ in measured.greedy)]
        axis.set_xticks(range(len(losses)), names, rotation=50, ha="right", rotation_mode="anchor")
        axis.set_xlabel("module removed, with those before it")
    else:
        axis.set_xticks(range(0, len(losses), 1 + len(losses) // 20))
        axis.set_xlabel("modules removed")
    axis.set_ylabel("loss (nats/token)")
    axis.set_title("greedy", pad=28)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, columnspacing=1.0, handletextpad=0.3)
