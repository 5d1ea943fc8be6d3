"""Depth against difficulty: means over groups of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mom.metrics.sums import Floats


@dataclass(frozen=True)
class DepthOfGroup:
    """The mean depth of a group of tokens.

    Attributes:
        by: what groups them, such as ``loss``.
        group: the group's name.
        tokens: number of tokens.
        loss: mean loss of the next token, in nats, over tokens that have one; NaN if none has.
        effective_depth: mean effective depth in blocks.
        weighted_depth: mean weighted depth in blocks.
        modules_per_token: mean number of modules, where a plain block counts 2.
    """

    by: str
    group: str
    tokens: int
    loss: float
    effective_depth: float
    weighted_depth: float
    modules_per_token: float


MEASURES = ("effective_depth", "weighted_depth", "modules_per_token")


def depth_by_group(
    by: str, names: Mapping[int, str], group: NDArray[np.int64], columns: Mapping[str, Floats]
) -> list[DepthOfGroup]:
    """Average the columns of ``tokens.parquet`` over each group that has tokens, in the order of ``names``.

    Args:
        by: what groups the tokens.
        names: name of each group.
        group: the group of each token, [n]; tokens of other groups do not count.
        columns: ``loss``, with NaN where nothing is predicted, and the :data:`MEASURES`, [n] each.
    """
    rows = []
    for value, name in names.items():
        inside = group == value
        if not inside.any():
            continue
        loss = columns["loss"][inside]
        known = loss[~np.isnan(loss)]
        rows.append(
            DepthOfGroup(
                by,
                name,
                int(inside.sum()),
                float(known.mean()) if len(known) else float("nan"),
                *(float(columns[measure][inside].mean()) for measure in MEASURES),
            )
        )
    return rows


def quantile_groups(values: Floats, number: int) -> tuple[dict[int, str], NDArray[np.int64]]:
    """Divide values into groups of equal size by rank, [n]; NaN is in no group (-1).

    Returns:
        The names of the groups, which state their ranges, and the group of each value.
    """
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    group = np.full(len(values), -1)
    group[order] = np.arange(len(order)) * number // max(len(order), 1)
    names = {}
    for index in range(number):
        inside = values[group == index]
        if len(inside):
            names[index] = f"{inside.min():.2f} … {inside.max():.2f}"
    return names, group
