"""Summarize recorded traces: usage and flow of modules, their tokens, and depth by frequency and by loss.

Each of the two files is read once, group by group; memory use does not depend on the length of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mom.analysis.traces import Traces
from mom.metrics.depth import Binned, binned_by_frequency

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

DEPTHS = ("effective_depth", "weighted_depth")
_LOSS_STEP = 0.5
_DEPTH_BINS = 40


@dataclass(frozen=True)
class Routing:
    """Usage of one pool in S recorded stages: R = S·H rounds, N modules (column N is SKIP), V token types.

    Attributes:
        assignments: number of assignments to each choice, [R, N+1].
        weight: sum of their weights, [R, N+1].
        flow: tokens by their first choice in a round and in the next recorded round, [R-1, N+1, N+1].
        by_type: assignments to each choice of a stage for each token type, [S, N+1, V].
    """

    assignments: Counts
    weight: Floats
    flow: Counts
    by_type: Counts


@dataclass(frozen=True)
class Depths:
    """Depth of the tokens, and how well they are predicted.

    Attributes:
        tokens: number of tokens.
        predicted: number of tokens whose next token was predicted.
        loss: mean cross-entropy of these next tokens, in nats.
        mean: mean of each depth, and of the modules per token.
        distribution: for each depth in :data:`DEPTHS`, its values in ascending order and the tokens of each value.
        by_frequency: each depth, binned by the frequency of the token's type in the text.
        by_loss: each depth, binned by the loss of the next token.
    """

    tokens: int
    predicted: int
    loss: float
    mean: Mapping[str, float]
    distribution: Mapping[str, tuple[Floats, Counts]]
    by_frequency: Mapping[str, Binned]
    by_loss: Mapping[str, Binned]


def routing_statistics(
    traces: Traces, progress: Callable[[int], object] = lambda rows: None
) -> dict[str, Routing]:
    """Count the choices in each pool; call ``progress`` after each group with the number of its rows."""
    header, vocabulary = traces.header, int(traces.header.model["vocab_size"])
    row_of = {stage: index for index, stage in enumerate(header.stages)}
    rounds = len(row_of) * header.num_rounds
    sums = {}
    for pool, layout in header.pools.items():
        slots = layout.num_modules + 1
        sums[pool] = Routing(
            np.zeros((rounds, slots), dtype=np.int64),
            np.zeros((rounds, slots)),
            np.zeros((max(rounds - 1, 0), slots, slots), dtype=np.int64),
            np.zeros((len(row_of), slots, vocabulary), dtype=np.int64),
        )
    before: dict[str, tuple[int, NDArray[Any]]] = {}
    for stage, number, pool, rows in traces.steps():
        own = sums[pool]
        slots = own.assignments.shape[1]
        index = row_of[stage] * header.num_rounds + number
        choice = rows["choice"].to_numpy().astype(np.int64)
        own.assignments[index] += np.bincount(choice, minlength=slots)
        own.weight[index] += np.bincount(choice, weights=rows["weight"].to_numpy(), minlength=slots)
        pairs = choice * vocabulary + rows["token_id"].to_numpy()
        # Add only pairs that occur: a table of all choices and types per group would be slow.
        present, counts = np.unique(pairs, return_counts=True)
        own.by_type[row_of[stage]].reshape(-1)[present] += counts
        first = choice[rows["place"].to_numpy() == 0]
        if index and before.get(pool, (-1, first))[0] == index - 1:
            moves = before[pool][1] * slots + first
            own.flow[index - 1] += np.bincount(moves, minlength=slots**2).reshape(slots, slots)
        before[pool] = (index, first)
        progress(len(rows))
    return sums


def depth_statistics(traces: Traces) -> Depths:
    """Summarize ``tokens.parquet``."""
    header = traces.header
    config = header.config
    fixed, parts = config.fixed_depth, len(header.pools)
    steps = np.arange(parts * fixed, parts * config.graph_depth + 1) / parts  # all possible effective depths
    # Weights may sum to more than 1 if they are not probabilities; such depths count in the last bin.
    edges = {"weighted_depth": np.linspace(fixed, config.graph_depth, _DEPTH_BINS + 1)}
    edges["effective_depth"] = np.append(steps, steps[-1] + 1 / parts) - 0.5 / parts
    counts = {name: np.zeros(len(edges[name]) - 1, dtype=np.int64) for name in DEPTHS}
    types = {name: np.zeros((3, config.vocab_size)) for name in DEPTHS}
    loss_edges = np.arange(0, math.ceil(math.log(config.vocab_size)) + 4, _LOSS_STEP)
    losses = {name: np.zeros((3, len(loss_edges) - 1)) for name in DEPTHS}
    sums = dict.fromkeys((*DEPTHS, "modules_per_token", "loss"), 0.0)
    tokens = predicted = 0
    for batch in traces.token_batches([*DEPTHS, "modules_per_token", "loss", "token_id"]):
        column = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
        has_loss = ~np.isnan(column["loss"])
        loss = column["loss"][has_loss].astype(np.float64)
        tokens, predicted = tokens + batch.num_rows, predicted + len(loss)
        sums["loss"] += float(loss.sum())
        sums["modules_per_token"] += float(column["modules_per_token"].astype(np.float64).sum())
        loss_bin = np.clip((loss / _LOSS_STEP).astype(np.int64), 0, len(loss_edges) - 2)
        for name in DEPTHS:
            depth = column[name].astype(np.float64)
            sums[name] += float(depth.sum())
            inside = np.clip(depth, edges[name][0], edges[name][-1])
            counts[name] += np.histogram(inside, edges[name])[0]
            types[name] += _moments(column["token_id"], depth, config.vocab_size)
            losses[name] += _moments(loss_bin, depth[has_loss], len(loss_edges) - 1)
    middles = {name: (edges[name][:-1] + edges[name][1:]) / 2 for name in DEPTHS}
    return Depths(
        tokens=tokens,
        predicted=predicted,
        loss=sums.pop("loss") / predicted if predicted else math.nan,
        mean={name: value / tokens for name, value in sums.items()},
        distribution={name: (middles[name], counts[name]) for name in DEPTHS},
        by_frequency={name: binned_by_frequency(*types[name]) for name in DEPTHS},
        by_loss={name: Binned(loss_edges, *losses[name]) for name in DEPTHS},
    )


def top_tokens(routing: Routing, count: int) -> list[list[list[dict[str, float]]]]:
    """Return the token types that distinguish each choice of each stage from the others.

    They are ranked by ``q · ln(q / p)``, where q is the type's fraction of the choice's assignments and p its fraction
    of all assignments of the stage: the type's contribution to the Kullback–Leibler divergence between the two. This
    ranks low both rare types that are here by chance and frequent types that are everywhere.

    Args:
        routing: usage of one pool.
        count: maximum number of types per choice; only types with q > p are returned.

    Returns:
        ``[stage][choice]``, lists of ``token_id``, ``places`` (the type's assignments to this choice), ``share`` (their
        fraction of the type's assignments in the stage), and ``lift`` (q / p).
    """
    tops = []
    for stage in routing.by_type:
        by_type = stage.sum(axis=0)
        overall = by_type / max(int(by_type.sum()), 1)
        slots = []
        for places in stage:
            own = places / max(int(places.sum()), 1)
            lift = np.divide(own, overall, out=np.zeros_like(own), where=overall > 0)
            score = own * np.log(np.maximum(lift, 1.0))
            best = np.argsort(-score, kind="stable")[:count]
            slots.append(
                [
                    {
                        "token_id": int(token),
                        "places": int(places[token]),
                        "share": float(places[token] / by_type[token]),
                        "lift": float(lift[token]),
                    }
                    for token in best
                    if score[token] > 0
                ]
            )
        tops.append(slots)
    return tops


def _moments(index: NDArray[Any], depth: Floats, size: int) -> Floats:
    """Return count, sum, and sum of squares of the depths at each of ``size`` indices, [3, size]."""
    return np.stack([np.bincount(index, weights=depth**power, minlength=size) for power in range(3)])
