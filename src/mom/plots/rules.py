"""Figure of the modules that run for each rule of a control, drawn to be read without its documentation."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mom.metrics.sums import Floats, as_floats, row_shares
from mom.plots.style import HEAT, new_figure, styled

COLUMNS = 2
"""Panels next to each other; a phone shows two."""


@styled
def modules_by_rule(counts: ArrayLike, *, pool: str = "FFN", run: str = "", num_stages: int = 1) -> Figure:
    """Draw which modules the tokens of each rule run: a heat map for each round.

    In the round where rules differ most, the order of the rules puts the module of each on the diagonal. Rules without
    tokens are omitted.

    Args:
        counts: [R, N, N+1], tokens by round, rule, and first choice, SKIP last.
        pool: label of the pool.
        run: the run's name.
        num_stages: stages that the rounds are divided into.
    """
    tokens = as_floats(counts)  # (R, N, N+1)
    rounds, number, _ = tokens.shape
    shares = row_shares(tokens)
    order = [rule for rule in _by_module(shares) if tokens[:, rule].any()]
    columns = min(COLUMNS, rounds)
    rows = -(-rounds // columns)
    side = 0.46 * number + 0.9
    figure = new_figure(
        f"Which {pool} module runs for which rule?", run, 1.2 + columns * (side + 0.5), 1.6 + rows * side
    )
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    labels = [*(str(module) for module in range(number)), "SKIP"]
    per_stage = rounds // num_stages
    for index, axis in enumerate(axes.flat):
        if index >= rounds:
            axis.set_axis_off()
            continue
        image = axis.imshow(shares[index][order], cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
        stage = "" if num_stages == 1 else f"stage {index // per_stage}, "
        axis.set_title(f"{stage}round {index % per_stage}")
        axis.set_xticks(range(number + 1), labels)
        axis.set_yticks(range(len(order)), [f"rule {rule}" for rule in order])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        for (row, column), share in np.ndenumerate(shares[index][order]):
            color = "black" if share > 0.55 else "white"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
        if index + columns >= rounds:
            axis.set_xlabel("module")
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], aspect=25, pad=0.02)
    bar.set_label("fraction of the rule's tokens")
    bar.ax.set_yticklabels(["0%", "50%", "100%"])
    bar.outline.set_visible(False)
    figure.supxlabel(
        "Tokens that answer. The context tells which rule applies, the token does not.\n"
        "One bright cell in a row: this rule has its own module.\n"
        "Equal rows: the choice does not depend on the rule.",
        fontsize=9.5,
    )
    return figure


def _by_module(shares: Floats) -> list[int]:
    """Return the rules in the order of their modules, in the round where one-to-one pairs of both are most frequent."""
    from scipy.optimize import linear_sum_assignment  # local because it takes a second to import

    pairs = [linear_sum_assignment(share[:, :-1], maximize=True) for share in shares]
    best = max(range(len(shares)), key=lambda index: shares[index][pairs[index]].sum())
    _, modules = pairs[best]
    return [int(rule) for rule in np.argsort(modules)]
