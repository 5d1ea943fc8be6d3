"""Figures of depth: arrays in, a matplotlib ``Figure`` out; nothing is read, written or kept.

What the arrays hold. Sizes: V token types, B bins. Depths are those of
:func:`mom.metrics.depth.depth_metrics`; padding is never in them.

- *distribution*: a pair of arrays [M], depths in blocks (ascending) and tokens of that depth.
- :class:`Binned`: sums of the depth of the tokens in each of B bins of something else.

``run`` is the run's name, which stands under every title.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mom.metrics.depth import Binned
from mom.metrics.sums import as_floats, row_shares
from mom.plots.style import LINE_STYLES, MARKERS, MODULE_COLORS, SKIP_COLOR, new_figure, styled


@styled
def depth_distribution(
    distributions: Mapping[str, tuple[ArrayLike, ArrayLike]], *, run: str = "", graph_depth: float
) -> Figure:
    """How the depth is spread over the tokens, with its mean, beside the depth of the graph.

    Args:
        distributions: by what the depth is called (``effective``, ``weighted``, …), its distribution; a panel
            for each.
        run: the run's name.
        graph_depth: blocks of the computation graph.
    """
    figure = new_figure("Depth of tokens", run, max(4.4, 3.5 * len(distributions) + 0.6), 3.6)
    axes = np.atleast_1d(figure.subplots(1, len(distributions), sharey=True))
    for axis, (name, (depths, tokens)) in zip(axes, distributions.items(), strict=True):
        depths, shares = as_floats(depths), row_shares(as_floats(tokens)[None])[0]
        width = 0.9 * (np.diff(depths).min() if len(depths) > 1 else 1.0)
        mean = float((depths * shares).sum())
        axis.bar(depths, shares, width=width, color=MODULE_COLORS[0])
        axis.axvline(mean, color="black", linewidth=1.5, label=f"mean {mean:.2f}")
        axis.axvline(
            graph_depth,
            color=MODULE_COLORS[5],
            linewidth=1.5,
            linestyle="--",
            label=f"graph {graph_depth:g}",
        )
        axis.set_xlabel(f"{name} depth (blocks)")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axes[0].set_ylabel("share of tokens")
    return figure


@styled
def depth_by_frequency(lines: Mapping[str, Binned], *, run: str = "") -> Figure:
    """Depth of rare and of frequent tokens.

    Args:
        lines: by what the depth is called, its bins by :func:`binned_by_frequency`; all on the same edges.
        run: the run's name.
    """
    return _depth_by(
        lines,
        run,
        title="Depth by token frequency",
        xlabel="occurrences of the token per million",
        logarithmic=True,
    )


@styled
def depth_by_loss(lines: Mapping[str, Binned], *, run: str = "") -> Figure:
    """Depth of positions that are easy and hard to continue.

    Args:
        lines: by what the depth is called, its bins by the loss with which the next token is predicted at the
            position, in nats; all on the same edges.
        run: the run's name.
    """
    return _depth_by(
        lines, run, title="Depth by loss", xlabel="loss of the next token (nats)", logarithmic=False
    )


def _depth_by(lines: Mapping[str, Binned], run: str, *, title: str, xlabel: str, logarithmic: bool) -> Figure:
    """A line of mean depth with its deviation for each kind of depth, over the number of tokens in each bin."""
    figure = new_figure(title, run, 6.4, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for index, (name, binned) in enumerate(lines.items()):
        edges, mean, std = as_floats(binned.edges), binned.mean(), binned.std()
        middle = np.sqrt(edges[:-1] * edges[1:]) if logarithmic else (edges[:-1] + edges[1:]) / 2
        full = as_floats(binned.tokens) > 0
        color = MODULE_COLORS[index % len(MODULE_COLORS)]
        style = {
            "color": color,
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": LINE_STYLES[index % 4],
        }
        upper.plot(middle[full], mean[full], label=name, **style)
        upper.fill_between(middle[full], (mean - std)[full], (mean + std)[full], color=color, alpha=0.15)
        if index == 0:
            lower.bar(
                edges[:-1],
                row_shares(as_floats(binned.tokens)[None])[0],
                width=0.94 * np.diff(edges),
                align="edge",
                color=SKIP_COLOR,
            )
    if logarithmic:
        lower.set_xscale("log")
    occupied = [(as_floats(one.edges), as_floats(one.tokens) > 0) for one in lines.values()]
    starts, ends = (
        [edges[part][full] for edges, full in occupied if full.any()] for part in (slice(-1), slice(1, None))
    )
    if starts:
        lower.set_xlim(min(one[0] for one in starts), max(one[-1] for one in ends))
    _at_least_a_block(upper)
    upper.set_ylabel("depth (blocks)")
    upper.legend(title="mean ± deviation", loc="center left", bbox_to_anchor=(1.0, 0.5))
    lower.set_ylabel("share of\ntokens")
    lower.set_xlabel(xlabel)
    return figure


def _at_least_a_block(axis: Axes) -> None:
    """Widen the scale of a depth to a block, so that differences of nothing are not drawn large."""
    low, high = axis.get_ylim()
    if high - low < 1:
        middle = (low + high) / 2
        axis.set_ylim(middle - 0.5, middle + 0.5)
