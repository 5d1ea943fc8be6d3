"""From recorded traces to counts: use, flow, tokens of each module, depth by frequency and by loss.

One pass over each of the two files, a row group at a time; what is kept does not grow with the text.
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
from mom.metrics.routing import POOLS

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

DEPTHS = ("effective_depth", "weighted_depth")
_LOSS_STEP = 0.5
_DEPTH_BINS = 40


@dataclass(frozen=True)
class Routing:
    """Use of one kind of pool. S stages recorded, R = S·H rounds, N modules, column N is SKIP, V token types.

    Attributes:
        places: places held by each slot, [R, N+1].
        weight: sum of their weights, [R, N+1].
        flow: tokens by the slot of their first choice in a round and in the next one recorded, [R-1, N+1, N+1].
        by_type: places held by each slot of a stage for each token type, [S, N+1, V].
    """

    places: Counts
    weight: Floats
    flow: Counts
    by_type: Counts


@dataclass(frozen=True)
class Depths:
    """How deep tokens are, and how well they are predicted.

    Attributes:
        tokens: how many.
        predicted: those whose next token was predicted.
        loss: mean cross-entropy of these, in nats.
        mean: mean of each depth, and of the modules per token.
        distribution: for each depth of :data:`DEPTHS`, depths ascending and tokens of that depth.
        by_frequency: for each, binned by how often a token's type occurs in the text.
        by_loss: for each, binned by the loss of the next token.
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
    """Count the choices of each kind of pool.

    Args:
        traces: as recorded.
        progress: called after each group with the number of its rows.
    """
    header, vocabulary = traces.header, int(traces.header.model["vocab_size"])
    row_of = {stage: index for index, stage in enumerate(header.stages)}
    rounds = len(row_of) * header.num_rounds
    sums = {}
    for kind in POOLS:
        slots = header.num_modules(kind) + 1
        sums[kind] = Routing(
            np.zeros((rounds, slots), dtype=np.int64),
            np.zeros((rounds, slots)),
            np.zeros((max(rounds - 1, 0), slots, slots), dtype=np.int64),
            np.zeros((len(row_of), slots, vocabulary), dtype=np.int64),
        )
    before: dict[str, tuple[int, NDArray[Any]]] = {}
    for stage, number, kind, rows in traces.steps():
        own = sums[kind]
        slots = own.places.shape[1]
        index = row_of[stage] * header.num_rounds + number
        choice = rows["choice"].to_numpy().astype(np.int64)
        own.places[index] += np.bincount(choice, minlength=slots)
        own.weight[index] += np.bincount(choice, weights=rows["weight"].to_numpy(), minlength=slots)
        pairs = choice * vocabulary + rows["token_id"].to_numpy()
        # Only what is there: a table of all slots and types would be made anew for every group.
        found, counts = np.unique(pairs, return_counts=True)
        own.by_type[row_of[stage]].reshape(-1)[found] += counts
        first = choice[rows["place"].to_numpy() == 0]
        if index and before.get(kind, (-1, first))[0] == index - 1:
            moves = before[kind][1] * slots + first
            own.flow[index - 1] += np.bincount(moves, minlength=slots**2).reshape(slots, slots)
        before[kind] = (index, first)
        progress(len(rows))
    return sums


def depth_statistics(traces: Traces) -> Depths:
    """Sum up ``tokens.parquet``."""
    config = traces.header.config
    fixed = config.graph_depth - config.num_stages * config.num_rounds
    halves = np.arange(2 * fixed, 2 * config.graph_depth + 1) / 2
    # Weights may add up to more than 1 where they are no probabilities; such depths count in the last bin.
    edges = {"weighted_depth": np.linspace(fixed, config.graph_depth, _DEPTH_BINS + 1)}
    edges["effective_depth"] = np.append(halves, halves[-1] + 0.5) - 0.25
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
        place = np.clip((loss / _LOSS_STEP).astype(np.int64), 0, len(loss_edges) - 2)
        for name in DEPTHS:
            depth = column[name].astype(np.float64)
            sums[name] += float(depth.sum())
            inside = np.clip(depth, edges[name][0], edges[name][-1])
            counts[name] += np.histogram(inside, edges[name])[0]
            types[name] += _moments(column["token_id"], depth, config.vocab_size)
            losses[name] += _moments(place, depth[has_loss], len(loss_edges) - 1)
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
    """The token types that set each slot of each stage apart from the others.

    They are ranked by ``q · ln(q / p)``, where q is the type's share of the slot's places and p its share of
    all places of the stage: the type's part in the Kullback–Leibler divergence between the two. So neither a
    rare type that came here by chance nor a frequent one that goes everywhere stands at the top.

    Args:
        routing: of one kind of pool.
        count: of types for each slot, at most; only such as the slot has more often than chance.

    Returns:
        ``[stage][slot]``, lists of ``token_id``, ``places`` (the type's in this slot), ``share`` (of the type's
        places in the stage that this slot holds) and ``lift`` (q / p).
    """
    found = []
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
                        "token_id": int(one),
                        "places": int(places[one]),
                        "share": float(places[one] / by_type[one]),
                        "lift": float(lift[one]),
                    }
                    for one in best
                    if score[one] > 0
                ]
            )
        found.append(slots)
    return found


def _moments(place: NDArray[Any], depth: Floats, size: int) -> Floats:
    """How many, their sum and their sum of squares in each of ``size`` places, [3, size]."""
    return np.stack([np.bincount(place, weights=depth**power, minlength=size) for power in range(3)])
