"""Figures of depth: functions from arrays to a matplotlib ``Figure``, without side effects.

Depths are those of :func:`mom.metrics.depth.depth_metrics`, without padding:

- *distribution*: a pair of arrays [M], depths in blocks (ascending) and the number of tokens of each depth.
- :class:`~mom.metrics.depth.Binned`: sums of the depth of the tokens in each bin of another quantity.

``run`` is the run's name, shown below every title.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mom.metrics.depth import Binned
from mom.metrics.sums import Floats, as_floats, row_shares
from mom.plots.style import (
    MODULE_COLORS,
    ROUNDING,
    SKIP_COLOR,
    is_constant,
    new_figure,
    series_style,
    styled,
)

T = TypeVar("T")

_ROUNDING_STD = 0.03  # blocks; a standard deviation from rounded sums of squares is this far from 0


@styled
def depth_distribution(
    distributions: Mapping[str, tuple[ArrayLike, ArrayLike]], *, run: str = "", graph_depth: float
) -> Figure | None:
    """Draw the distribution of depth over tokens, with its mean and the depth of the graph.

    A depth that all tokens share is not drawn but said in a line, and equal distributions are drawn once; ``None`` if
    none varies.

    Args:
        distributions: a distribution for each kind of depth (``effective``, ``weighted``, …), each in its own panel.
        run: the run's name.
        graph_depth: blocks of the computation graph.
    """
    found = {name: _occupied(*given) for name, given in distributions.items()}
    same = {name: depths[0] for name, (depths, _) in found.items() if len(depths) == 1}
    distributions = _merged(
        {name: given for name, given in distributions.items() if len(found[name][0]) > 1},
        lambda first, second: _equal(_occupied(*first), _occupied(*second)),
    )
    if not distributions:
        return None
    figure = new_figure("Depth of tokens", run, max(5.0, 3.5 * len(distributions) + 0.6), 3.6)
    _say_constant(figure, same)
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
    axes[0].set_ylabel("fraction of tokens")
    return figure


@styled
def depth_by_frequency(
    lines: Mapping[str, Binned], *, run: str = "", graph_depth: float | None = None
) -> Figure | None:
    """Draw depth by token frequency: :func:`~mom.metrics.depth.binned_by_frequency` for each kind of depth.

    As in :func:`depth_distribution`, a constant depth is only said, and ``None`` returned if there is no other. The
    bands of standard deviations end at ``graph_depth``, which no token exceeds.
    """
    return _depth_by(
        lines,
        run,
        graph_depth,
        title="Depth by token frequency",
        xlabel="occurrences of the token per million",
        logarithmic=True,
    )


@styled
def depth_by_loss(
    lines: Mapping[str, Binned], *, run: str = "", graph_depth: float | None = None
) -> Figure | None:
    """Draw depth by the loss of the next token, in nats, for each kind of depth, as :func:`depth_by_frequency` does."""
    return _depth_by(
        lines,
        run,
        graph_depth,
        title="Depth by loss",
        xlabel="loss of the next token (nats)",
        logarithmic=False,
    )


def _depth_by(
    lines: Mapping[str, Binned],
    run: str,
    graph_depth: float | None,
    *,
    title: str,
    xlabel: str,
    logarithmic: bool,
) -> Figure | None:
    """Draw mean and standard deviation of each kind of depth, with equal bins, above the tokens in each bin."""
    same = {name: float(np.nanmean(line.mean())) for name, line in lines.items() if _is_flat(line)}
    lines = _merged(
        {name: line for name, line in lines.items() if not _is_flat(line)},
        lambda first, second: (
            _equal((first.mean(), first.tokens), (second.mean(), second.tokens))
            and np.allclose(first.std(), second.std(), atol=_ROUNDING_STD, equal_nan=True)
        ),
    )
    if not lines:
        return None
    figure = new_figure(title, run, 6.4, 4.4)
    _say_constant(figure, same)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for index, (name, binned) in enumerate(lines.items()):
        edges, mean, std = as_floats(binned.edges), binned.mean(), binned.std()
        middle = np.sqrt(edges[:-1] * edges[1:]) if logarithmic else (edges[:-1] + edges[1:]) / 2
        occupied = as_floats(binned.tokens) > 0
        style = series_style(index)
        upper.plot(middle[occupied], mean[occupied], label=name, **style)
        highest = mean + std if graph_depth is None else np.minimum(mean + std, graph_depth)
        upper.fill_between(
            middle[occupied],
            (mean - std)[occupied],
            highest[occupied],
            color=style["color"],
            alpha=0.15,
        )
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
    limits = [_limits(binned) for binned in lines.values() if as_floats(binned.tokens).any()]
    if limits:
        lower.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    _widen_to_a_block(upper)
    upper.set_ylabel("depth (blocks)")
    upper.legend(title="mean ± std", loc="center left", bbox_to_anchor=(1.0, 0.5))
    lower.set_ylabel("fraction of\ntokens")
    lower.set_xlabel(xlabel)
    return figure


def _occupied(depths: ArrayLike, tokens: ArrayLike) -> tuple[Floats, Floats]:
    """Return the depths that tokens have and the tokens of each."""
    depths, tokens = as_floats(depths), as_floats(tokens)
    return depths[tokens > 0], tokens[tokens > 0]


def _is_flat(line: Binned) -> bool:
    """Return whether all tokens have the same depth, but for rounding."""
    occupied = as_floats(line.tokens) > 0
    return is_constant(line.mean()[occupied]) and float(line.std()[occupied].max(initial=0)) < _ROUNDING_STD


def _equal(first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> bool:
    return all(
        np.shape(one) == np.shape(other) and np.allclose(one, other, ROUNDING, equal_nan=True)
        for one, other in zip(first, second, strict=True)
    )


def _merged(items: Mapping[str, T], are_equal: Callable[[T, T], bool]) -> dict[str, T]:
    """Give equal items one entry, under all of their names."""
    merged: dict[str, T] = {}
    for name, item in items.items():
        same = next((known for known, other in merged.items() if are_equal(other, item)), None)
        if same is None:
            merged[name] = item
        else:
            merged = {f"{k} = {name}" if k == same else k: other for k, other in merged.items()}
    return merged


def _say_constant(figure: Figure, same: Mapping[str, float]) -> None:
    if same:
        said = ", ".join(f"{name} depth {depth:.3g}" for name, depth in same.items())
        figure.supxlabel(f"The same for all tokens, so not drawn: {said}.", fontsize=9)


def _limits(binned: Binned) -> tuple[float, float]:
    """Return the outer edges of the bins that have tokens."""
    edges, occupied = as_floats(binned.edges), as_floats(binned.tokens) > 0
    return float(edges[:-1][occupied][0]), float(edges[1:][occupied][-1])


def _widen_to_a_block(axis: Axes) -> None:
    """Widen the depth axis to at least a block, so that negligible differences look small."""
    low, high = axis.get_ylim()
    if high - low < 1:
        middle = (low + high) / 2
        axis.set_ylim(middle - 0.5, middle + 0.5)
