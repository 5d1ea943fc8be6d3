"""Tables of an analysis: rows of plain values, as CSV files and as one JSON file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mom.analysis.statistics import Routing, top_tokens
from mom.analysis.traces import Header
from mom.metrics.modules import Module, Pair, Removal
from mom.runs.files import write_json_atomic, write_text_atomic

Rows = list[dict[str, Any]]
JSON = "tables.json"


def use_table(header: Header, routing: Mapping[str, Routing]) -> Rows:
    """How often each round takes each slot.

    Columns: ``stage``, ``round``, ``kind``, ``choice`` (the number of modules is SKIP), ``is_skip``, ``places``,
    ``share`` (of the round's places), ``mean_weight`` (of the places held; None where there are none).
    """
    rows: Rows = []
    for kind, one in routing.items():
        for index, (places, weight) in enumerate(zip(one.places, one.weight, strict=True)):
            for choice in range(len(places)):
                rows.append(
                    {
                        "stage": header.stages[index // header.num_rounds],
                        "round": index % header.num_rounds,
                        "kind": kind,
                        "choice": choice,
                        "is_skip": choice == header.num_modules(kind),
                        "places": int(places[choice]),
                        "share": _over(places[choice], places.sum()),
                        "mean_weight": _over(weight[choice], places[choice]),
                    }
                )
    return rows


def module_table(
    header: Header,
    routing: Mapping[str, Routing],
    parameters: Mapping[str, int],
    pairs: Sequence[Pair],
    removal: Removal | None,
    tolerance: float,
) -> Rows:
    """What is known about each module, and about SKIP of each pool.

    Columns: ``stage``, ``kind``, ``choice``, ``is_skip``; ``share`` of the places of all rounds and
    ``mean_weight``; ``parameters``; ``loss_rise`` without this module alone (None: it cannot be spared, or was not
    measured); ``removed`` as which in the greedy order, counted from 1, and ``loss_rise_then``; ``droppable``
    within ``tolerance`` together with all before it; ``nearest``, the module of its pool whose outputs are most
    like its own, and ``nearest_cosine``.
    """
    order = (
        {} if removal is None else {one: (n, loss) for n, (one, loss) in enumerate(removal.greedy, start=1)}
    )
    droppable = set() if removal is None else set(removal.droppable(tolerance))
    rows: Rows = []
    for kind, one in routing.items():
        for place, stage in enumerate(header.stages):
            rounds = slice(place * header.num_rounds, (place + 1) * header.num_rounds)
            places, weight = one.places[rounds].sum(axis=0), one.weight[rounds].sum(axis=0)
            for choice in range(len(places)):
                module = Module(stage, kind, choice)
                is_skip = choice == header.num_modules(kind)
                alone = None if removal is None else removal.alone.get(module)
                rank, then = order.get(module, (None, None))
                nearest, cosine = _nearest(module, pairs)
                rows.append(
                    {
                        "stage": stage,
                        "kind": kind,
                        "choice": choice,
                        "is_skip": is_skip,
                        "share": _over(places[choice], places.sum()),
                        "mean_weight": _over(weight[choice], places[choice]),
                        "parameters": 0 if is_skip else parameters[kind],
                        "loss_rise": None if alone is None or removal is None else alone - removal.loss,
                        "removed": rank,
                        "loss_rise_then": None if then is None or removal is None else then - removal.loss,
                        "droppable": module in droppable if order else None,
                        "nearest": nearest,
                        "nearest_cosine": cosine,
                    }
                )
    return rows


def token_table(
    header: Header, routing: Mapping[str, Routing], tokenizer: PreTrainedTokenizerFast, count: int
) -> Rows:
    """The token types that set each module apart, as :func:`mom.analysis.statistics.top_tokens` ranks them.

    Columns: ``stage``, ``kind``, ``choice``, ``rank`` from 1, ``token_id``, ``text``, ``places``, ``share``,
    ``lift``.
    """
    return [
        {
            "stage": header.stages[place],
            "kind": kind,
            "choice": choice,
            "rank": rank,
            "token_id": found["token_id"],
            "text": tokenizer.decode([int(found["token_id"])]),
            **{name: found[name] for name in ("places", "share", "lift")},
        }
        for kind, one in routing.items()
        for place, slots in enumerate(top_tokens(one, count))
        for choice, top in enumerate(slots)
        for rank, found in enumerate(top, start=1)
    ]


def similarity_table(pairs: Sequence[Pair]) -> Rows:
    """A row for every two modules of a pool: ``stage``, ``kind``, ``first``, ``second``, and their similarities."""
    return [
        {
            "stage": pair.first.stage,
            "kind": pair.first.kind,
            "first": pair.first.number,
            "second": pair.second.number,
            "weights": pair.weights,
            "outputs": pair.outputs,
            "cka": pair.cka,
        }
        for pair in pairs
    ]


def removal_table(removal: Removal) -> Rows:
    """``how`` (whole, alone, greedily), ``step``, the module that went, the ``loss`` then and its ``rise``."""
    steps: list[tuple[str, int, Module | None, float]] = [("whole", 0, None, removal.loss)]
    steps += [("alone", 1, module, loss) for module, loss in removal.alone.items()]
    steps += [("greedily", n, module, loss) for n, (module, loss) in enumerate(removal.greedy, start=1)]
    return [
        {
            "how": how,
            "step": step,
            "stage": None if module is None else module.stage,
            "kind": None if module is None else module.kind,
            "choice": None if module is None else module.number,
            "loss": loss,
            "rise": loss - removal.loss,
        }
        for how, step, module, loss in steps
    ]


def write_tables(folder: Path, tables: Mapping[str, Rows]) -> list[Path]:
    """Write each table that has rows as ``<name>.csv``, and all as ``tables.json``; returns the paths."""
    written = []
    for name, rows in tables.items():
        if not rows:
            continue
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = folder / f"{name}.csv"
        write_text_atomic(path, text.getvalue())
        written.append(path)
    write_json_atomic(folder / JSON, dict(tables))
    return [*written, folder / JSON]


def _nearest(module: Module, pairs: Sequence[Pair]) -> tuple[int | None, float | None]:
    """The module whose outputs are most like this one's."""
    others = [
        (pair.outputs, (pair.second if pair.first == module else pair.first).number)
        for pair in pairs
        if module in (pair.first, pair.second)
    ]
    if not others:
        return None, None
    cosine, index = max(others)
    return index, cosine


def _over(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None
