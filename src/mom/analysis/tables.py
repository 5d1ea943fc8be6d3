"""The tables of an analysis: rows of plain values, written as CSV files and as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mom.analysis.statistics import Routing, top_tokens
from mom.analysis.traces import Header
from mom.metrics.modules import Module, Pair, Removal
from mom.runs.files import format_csv, write_json_atomic, write_text_atomic

Rows = list[dict[str, Any]]
JSON = "tables.json"


def use_table(header: Header, routing: Mapping[str, Routing]) -> Rows:
    """Count the assignments to each choice in each round.

    Columns: ``stage``, ``round``, ``kind`` (the pool), ``choice`` (the number of modules means SKIP), ``is_skip``,
    ``places`` (assignments), ``share`` (fraction of the round's assignments), ``mean_weight`` (of these assignments;
    ``None`` without any).
    """
    rows: Rows = []
    for pool, usage in routing.items():
        for index, (places, weight) in enumerate(zip(usage.assignments, usage.weight, strict=True)):
            for choice in range(len(places)):
                rows.append(
                    {
                        "stage": header.stages[index // header.num_rounds],
                        "round": index % header.num_rounds,
                        "kind": pool,
                        "choice": choice,
                        "is_skip": choice == header.num_modules(pool),
                        "places": int(places[choice]),
                        "share": _ratio(places[choice], places.sum()),
                        "mean_weight": _ratio(weight[choice], places[choice]),
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
    """Describe each module, and the SKIP choice of each pool.

    Columns: ``stage``, ``kind`` (the pool), ``choice``, ``is_skip``; ``share``, the fraction of the assignments of all
    rounds, and ``mean_weight``; ``parameters``; ``loss_rise``, the loss increase without this module alone (``None`` if
    it cannot be removed or was not measured); ``removed``, its rank in the greedy order from 1, and ``loss_rise_then``;
    ``droppable``, whether it can be removed within ``tolerance``, together with all before it; ``nearest``, the module
    of its pool with the most similar outputs, and ``nearest_cosine``.
    """
    greedy = [] if removal is None else removal.greedy
    order = {module: (rank, loss) for rank, (module, loss) in enumerate(greedy, start=1)}
    droppable = set() if removal is None else set(removal.droppable(tolerance))
    rows: Rows = []
    for pool, usage in routing.items():
        for row, stage in enumerate(header.stages):
            rounds = slice(row * header.num_rounds, (row + 1) * header.num_rounds)
            places, weight = usage.assignments[rounds].sum(axis=0), usage.weight[rounds].sum(axis=0)
            for choice in range(len(places)):
                module = Module(stage, pool, choice)
                is_skip = choice == header.num_modules(pool)
                alone = None if removal is None else removal.alone.get(module)
                rank, then = order.get(module, (None, None))
                nearest, cosine = _nearest(module, pairs)
                rows.append(
                    {
                        "stage": stage,
                        "kind": pool,
                        "choice": choice,
                        "is_skip": is_skip,
                        "share": _ratio(places[choice], places.sum()),
                        "mean_weight": _ratio(weight[choice], places[choice]),
                        "parameters": 0 if is_skip else parameters[pool],
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
    header: Header, routing: Mapping[str, Routing], tokenizer: PreTrainedTokenizerFast | None, count: int
) -> Rows:
    """List the token types that distinguish each module, ranked by :func:`mom.analysis.statistics.top_tokens`.

    Columns: ``stage``, ``kind`` (the pool), ``choice``, ``rank`` from 1, ``token_id``, ``text``, ``places``, ``share``,
    ``lift``.
    """
    return [
        {
            "stage": header.stages[row],
            "kind": pool,
            "choice": choice,
            "rank": rank,
            "token_id": token["token_id"],
            "text": token_text(tokenizer, int(token["token_id"])),
            **{name: token[name] for name in ("places", "share", "lift")},
        }
        for pool, usage in routing.items()
        for row, slots in enumerate(top_tokens(usage, count))
        for choice, top in enumerate(slots)
        for rank, token in enumerate(top, start=1)
    ]


def similarity_table(pairs: Sequence[Pair]) -> Rows:
    """List the similarities of every two modules of a pool: ``stage``, ``kind`` (the pool), ``first``, ``second``…"""
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
    """List each ablation: ``how`` (whole, alone, greedily), ``step``, the removed module, ``loss``, and ``rise``."""
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
    """Write each non-empty table as ``<name>.csv`` and all as ``tables.json``; return the paths."""
    written = []
    for name, rows in tables.items():
        if not rows:
            continue
        path = folder / f"{name}.csv"
        write_text_atomic(path, format_csv(list(rows[0]), rows))
        written.append(path)
    write_json_atomic(folder / JSON, dict(tables))
    return [*written, folder / JSON]


def token_text(tokenizer: PreTrainedTokenizerFast | None, token: int) -> str:
    """Return the text of a token; without a tokenizer, its number."""
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def _nearest(module: Module, pairs: Sequence[Pair]) -> tuple[int | None, float | None]:
    """Return the module with the most similar outputs, and their cosine."""
    others = [
        (pair.outputs, (pair.second if pair.first == module else pair.first).number)
        for pair in pairs
        if module in (pair.first, pair.second)
    ]
    if not others:
        return None, None
    cosine, index = max(others)
    return index, cosine


def _ratio(part: Any, total: Any) -> float | None:
    """Divide two numbers; return ``None`` if the second is 0."""
    return float(part) / float(total) if total else None
