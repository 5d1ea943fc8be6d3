"""Measure what the recorded choices depend on, and how they change from round to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mom.analysis.statistics import Routing
from mom.analysis.traces import Header, Traces
from mom.metrics.dependence import Dependence, mean_over_rounds, measure_dependence

MAX_TOKENS = 100_000
"""Tokens to read, from the start of the text; counts by attribute need memory."""

Ints = NDArray[np.int64]


def choice_dependence(
    traces: Traces, attributes: Mapping[str, Ints] | None = None, *, seed: int = 0
) -> list[Dependence]:
    """Measure the dependence of each pool's first choices on each attribute of the tokens, by round and on average.

    The attributes are the token's ID, the ID before it in its window, its position, and the round, for which all rounds
    count together; and those given.

    Args:
        traces: the recorded traces.
        attributes: further attributes of all recorded tokens by name, [tokens]; a negative value is unknown, and the
            token does not count.
        seed: seed of the permutations that estimate the information by chance.
    """
    table = traces.tokens(["window", "position", "token_id"], first=MAX_TOKENS)
    column = {name: table[name].to_numpy().astype(np.int64) for name in table.schema.names}
    previous = np.where(column["position"] > 0, np.roll(column["token_id"], 1), -1)
    known: dict[str, Ints] = {
        "token_id": column["token_id"],
        "previous_token_id": previous,
        "position": column["position"],
        **{name: values[: len(previous)] for name, values in (attributes or {}).items()},
    }
    indexed = {name: (values >= 0, _index(values)) for name, values in known.items()}
    result = []
    for pool, rounds in first_choices(traces).items():
        for name, (counts, index) in indexed.items():
            if not counts.any():
                continue
            window = column["window"][counts]
            measured = [
                measure_dependence(pool, number, name, choice[counts], index[counts], window, seed=seed)
                for number, choice in rounds.items()
            ]
            result += [mean_over_rounds(measured), *measured]
        result.append(_dependence_on_round(pool, rounds, column["window"], seed))
    return result


def first_choices(traces: Traces) -> dict[str, dict[int, Ints]]:
    """Return the first choices of the first :data:`MAX_TOKENS` tokens, [tokens], by pool and round of all stages."""
    parts: dict[str, dict[int, list[Ints]]] = {pool: {} for pool in traces.header.pools}
    for stage, number, pool, rows in traces.steps(first=MAX_TOKENS):
        first = rows["choice"].to_numpy()[rows["place"].to_numpy() == 0].astype(np.int64)
        parts[pool].setdefault(stage * traces.header.num_rounds + number, []).append(first)
    return {
        pool: {number: np.concatenate(found)[:MAX_TOKENS] for number, found in sorted(rounds.items())}
        for pool, rounds in parts.items()
    }


def round_changes(usage: Routing, header: Header) -> dict[int, float]:
    """Return the fraction of tokens whose first choice differs from the round before, by round of all stages.

    The first round of a stage has no round before.
    """
    rounds = header.num_rounds
    return {
        header.stages[index // rounds] * rounds + index % rounds: float(1 - np.trace(flow) / flow.sum())
        for index, flow in enumerate(usage.flow, start=1)
        if index % rounds and flow.sum()
    }


def _dependence_on_round(pool: str, rounds: Mapping[int, Ints], window: Ints, seed: int) -> Dependence:
    """Measure the dependence on the round, of all steps of a pool together."""
    choice = np.concatenate(list(rounds.values()))
    number = np.repeat(np.arange(len(rounds)), len(window))
    measured = measure_dependence(pool, 0, "round", choice, number, np.tile(window, len(rounds)), seed=seed)
    return mean_over_rounds([measured])


def _index(values: Ints) -> Any:
    """Number the values that occur from 0."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)
