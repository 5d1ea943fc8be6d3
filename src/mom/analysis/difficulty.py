"""Compare the depth of easy and hard tokens: by loss, by class, and by what is known about their window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mom.analysis.dependence import MAX_TOKENS
from mom.analysis.traces import Traces
from mom.metrics.difficulty import MEASURES, DepthOfGroup, depth_by_group, quantile_groups

NUM_QUANTILES = 10


class Groups(NamedTuple):
    """Groups of a source's tokens: the group of each token, [tokens], -1 for none, and the names of the groups."""

    group: NDArray[np.int64]
    names: Sequence[str]


def depth_by_difficulty(traces: Traces, groups: Mapping[str, Groups] | None = None) -> list[DepthOfGroup]:
    """Average depth by deciles of the loss of the next token, and by given groups of tokens.

    For each given grouping, ``<name>`` covers all tokens and ``<name>, predicted`` those with a loss, if not all have
    one (at the answers of a task).

    Args:
        traces: the recorded traces; of these, the first :data:`MAX_TOKENS` tokens.
        groups: groupings by name.
    """
    table = traces.tokens(["loss", *MEASURES], first=MAX_TOKENS)
    columns = {
        name: table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in table.schema.names
    }
    rows = depth_by_group("loss", *quantile_groups(columns["loss"], NUM_QUANTILES), columns)
    predicted = ~np.isnan(columns["loss"])
    for name, given in (groups or {}).items():
        group, names = given.group[: table.num_rows], dict(enumerate(given.names))
        rows += depth_by_group(name, names, group, columns)
        if predicted.mean() < 0.9:
            rows += depth_by_group(f"{name}, predicted", names, np.where(predicted, group, -1), columns)
    return rows
