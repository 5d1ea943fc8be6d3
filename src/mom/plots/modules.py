"""Figures of single modules: how alike they are, and the loss without them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mom.metrics.modules import KINDS, Pair, Removal
from mom.metrics.routing import POOLS
from mom.plots.style import HEAT, MODULE_COLORS, new_figure, styled

_COLOR = {"attention": MODULE_COLORS[0], "ffn": MODULE_COLORS[5]}
_MARKER = {"attention": "o", "ffn": "s"}
_ANNOTATED_MODULES = 8
_LABELED_STEPS = 16


@styled
def similarity(pairs: list[Pair], *, run: str = "", stage: int = 0) -> Figure:
    """Heat maps of how alike the modules of a stage are: a row for attention and one for FFN.

    Columns: weights, outputs, CKA, as :mod:`mom.analysis.interventions` defines them. The colors run from 0 to 1;
    what is below 0 is drawn as 0, with its number written in where there is room.

    Args:
        pairs: every two modules of each pool.
        run: the run's name.
        stage: which stage.
    """
    names = {
        "weights": "weights (cosine)",
        "outputs": "outputs (mean cosine)",
        "cka": "outputs (linear CKA)",
    }
    figure = new_figure(f"Similarity of modules, stage {stage}", run, 9.4, 6.2)
    axes = figure.subplots(len(POOLS), len(names), squeeze=False)
    for row, kind in zip(axes, POOLS, strict=True):
        own = [pair for pair in pairs if (pair.first.stage, pair.first.kind) == (stage, kind)]
        size = 1 + max((pair.second.number for pair in own), default=0)
        for axis, (name, title) in zip(row, names.items(), strict=True):
            table = np.eye(size)
            for pair in own:
                places = (pair.first.number, pair.second.number)
                table[places] = table[places[::-1]] = getattr(pair, name)
            image = axis.imshow(table, cmap=HEAT, vmin=0, vmax=1)
            ticks = range(0, size, 1 if size <= 2 * _ANNOTATED_MODULES else int(np.ceil(size / 12)))
            axis.set_xticks(ticks)
            axis.set_yticks(ticks)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(f"{KINDS[kind]}: {title}")
            if size <= _ANNOTATED_MODULES:
                for (first, second), value in np.ndenumerate(table):
                    color = "black" if value > 0.55 else "white"
                    axis.text(
                        second, first, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9
                    )
        row[0].set_ylabel("module")
    for axis in axes[-1]:
        axis.set_xlabel("module")
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], fraction=0.03, label="similarity")
    bar.outline.set_visible(False)
    return figure


@styled
def removal(measured: Removal, *, run: str = "", tolerance: float | None = None) -> Figure:
    """What the model loses without each module, and without more and more of them.

    Args:
        measured: by :func:`mom.analysis.interventions.measure_removal`.
        run: the run's name.
        tolerance: a rise of the loss that a user would accept, drawn as a line.
    """
    has_curve = bool(measured.greedy)
    size = max(5.5, 1.6 + 0.34 * len(measured.alone)), max(3.8, 1.6 + 0.3 * len(measured.alone))
    figure = new_figure("Loss without modules", run, size[0] + 5.0 * has_curve, size[1])
    axes = np.atleast_1d(figure.subplots(1, 1 + has_curve, width_ratios=(1, 1.15)[: 1 + has_curve]))
    _alone(axes[0], measured, tolerance)
    if has_curve:
        _curve(axes[1], measured, tolerance)
    return figure


def _alone(axis: Axes, measured: Removal, tolerance: float | None) -> None:
    """A bar for each module, the one that costs most uppermost."""
    ranked = sorted(measured.alone, key=measured.alone.__getitem__)
    rise = [measured.alone[module] - measured.loss for module in ranked]
    axis.barh(range(len(ranked)), rise, color=[_COLOR[module.kind] for module in ranked])
    axis.set_yticks(range(len(ranked)), [str(module) for module in ranked])
    axis.axvline(0, color="black", linewidth=0.8)
    if tolerance is not None:
        axis.axvline(tolerance, color="black", linewidth=1, linestyle=":")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_xlabel("rise of the loss (nats per token)")
    axis.set_title("one at a time")


def _curve(axis: Axes, measured: Removal, tolerance: float | None) -> None:
    """The loss by the number of modules that are gone, each point named by the last of them."""
    losses = [measured.loss, *(loss for _, loss in measured.greedy)]
    axis.plot(range(len(losses)), losses, color="#444444", linewidth=1.2, zorder=1)
    axis.plot([0], losses[:1], marker="D", color="black", linestyle="", label="whole model")
    for kind in POOLS:
        places = [index for index, (module, _) in enumerate(measured.greedy, start=1) if module.kind == kind]
        axis.plot(
            places,
            [losses[place] for place in places],
            marker=_MARKER[kind],
            color=_COLOR[kind],
            linestyle="",
            label=KINDS[kind],
        )
    if len(measured.greedy) <= _LABELED_STEPS:
        for place, (module, loss) in enumerate(measured.greedy, start=1):
            axis.annotate(
                str(module),
                (place, loss),
                xytext=(5, -11),
                textcoords="offset points",
                fontsize=8.5,
            )
    if tolerance is not None:
        axis.axhline(
            measured.loss + tolerance,
            color="black",
            linewidth=1,
            linestyle=":",
            label=f"whole + {tolerance:g}",
        )
        axis.set_xlim(right=len(measured.greedy) + 0.2 * len(measured.greedy))
    axis.margins(y=0.12)
    axis.set_xticks(range(0, len(losses), 1 + len(losses) // 20))
    axis.set_xlabel("modules removed")
    axis.set_ylabel("loss (nats per token)")
    axis.set_title("greedily")
    axis.legend(loc="upper left")
