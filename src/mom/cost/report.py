"""Tables of the cost of models, with models in rows and few enough columns for a terminal of 80."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from mom.console import MISSING, build_table
from mom.cost.plan import Plan

Costs = Mapping[str, Mapping[str, float]]
"""The numbers of each model, by name."""

_GIGA, _MIB = 1e9, 2**20


class _Column(NamedTuple):
    """A column: its heading, the name of its metric, and the unit that values are divided by."""

    heading: str
    name: str
    unit: float = 1


_SIZE = (
    _Column("parameters", "parameters"),
    _Column("used per\ntoken, at most", "parameters/active"),
    _Column("graph depth\n(blocks)", "depth/graph"),
    _Column("KV cache\n(bytes/token)", "kv_cache/bytes_per_token"),
)
_FLOPS = (
    _Column("all", "flops/forward", _GIGA),
    _Column("plain\nblocks", "flops/blocks", _GIGA),
    _Column("modules", "flops/modules", _GIGA),
    _Column("attention", "flops/attention", _GIGA),
    _Column("routers", "flops/routers", _GIGA),
    _Column("head", "flops/head", _GIGA),
    _Column("all, as\nrouted", "flops/forward_actual", _GIGA),
)
_FORWARD = (
    _Column("all", "forward/total", _MIB),
    _Column("parameters", "forward/parameters", _MIB),
    _Column("cache", "forward/cache", _MIB),
    _Column("activations", "forward/activations", _MIB),
    _Column("measured\nwithout cache", "memory/forward", _MIB),
)
_TRAINING = (
    _Column("all", "training/total", _MIB),
    _Column("parameters", "training/parameters", _MIB),
    _Column("optimizer", "training/optimizer", _MIB),
    _Column("gradients", "training/gradients", _MIB),
    _Column("activations", "training/activations", _MIB),
    _Column("measured", "memory/training", _MIB),
)


def cost_tables(costs: Costs, *, length: int, batch_size: int, precision: str, device: str) -> list[Table]:
    """Return the tables of size, FLOPs, and memory; columns without numbers are omitted.

    Args:
        costs: the results of :func:`mom.cost.estimate.static_costs`, and what was measured.
        length: T, tokens of a sequence.
        batch_size: B, sequences of a batch.
        precision: ``trainer.precision``.
        device: where memory is measured.
    """
    vocabularies = {int(numbers["vocab_size"]) for numbers in costs.values()}
    vocabulary = f", vocabulary of {vocabularies.pop():,}" if len(vocabularies) == 1 else ""
    batch = f"{batch_size} × {length} tokens, {precision}"
    usage = list(dict.fromkeys(name for numbers in costs.values() for name in numbers if "usage/" in name))
    tables = [
        _table(f"Size{vocabulary}", costs, _SIZE, "{:,.0f}"),
        _table(f"GFLOP of a forward pass over {length} tokens, no step skipped", costs, _FLOPS),
        _table(
            "Modules of a token in a round, as routed",
            costs,
            [_Column(name.partition("/")[2], name) for name in usage],
        ),
        _table(f"Memory of a forward pass (MiB), {batch}", costs, _FORWARD),
        _table(f"Memory of a training step at its peak (MiB), {batch} on {device}", costs, _TRAINING),
    ]
    return [table for table in tables if table.columns[1:]]


def plan_tables(plans: Mapping[tuple[str, str], Plan], title: str) -> list[Table]:
    """Return the tables of memory and time; ``plans`` has a plan for each model and strategy."""
    memory = [
        [
            *key,
            *(_number(part / 1e9) for part in _memory(plan)),
            "yes" if plan.fits else "no",
            f"{plan.largest_batch:,}",
        ]
        for key, plan in plans.items()
    ]
    times = [
        [
            *key,
            *(_number(1e3 * part) for part in (plan.step, plan.compute, plan.communication, plan.data)),
            f"{plan.tokens / plan.step:,.0f}",
            _number(plan.days),
            MISSING if plan.megawatt_hours is None else _number(plan.megawatt_hours),
        ]
        for key, plan in plans.items()
    ]
    headings = ["all", "weights", "grads", "optim.", "comm.", "acts.", "fits", "most"]
    time_headings = ["step", "compute", "comm.", "data", "tokens/s", "days", "MWh"]
    return [
        _build(
            ["model", "", *headings],
            memory,
            f"GB of each device, and the most sequences that fit; {title}",
            texts=2,
        ),
        _build(
            ["model", "", *time_headings], times, "Milliseconds of a step, and the whole training", texts=2
        ),
    ]


def _memory(plan: Plan) -> Sequence[float]:
    parts = (plan.parameters, plan.gradients, plan.optimizer, plan.communication_buffers, plan.activations)
    return (plan.memory, *parts)


def _table(title: str, costs: Costs, columns: Sequence[_Column], form: str | None = None) -> Table:
    """Build a table of the columns that have a number."""
    shown = [column for column in columns if any(column.name in numbers for numbers in costs.values())]
    rows = []
    for model, numbers in costs.items():
        values = [(numbers.get(column.name), column.unit) for column in shown]
        written = [
            None if value is None else form.format(value / unit) if form else _number(value / unit)
            for value, unit in values
        ]
        rows.append([model, *written])
    return _build(["model", *(column.heading for column in shown)], rows, title)


def _build(headings: Sequence[str], rows: Sequence[Sequence[Any]], title: str, texts: int = 1) -> Table:
    table = build_table(
        headings, rows, title=title, texts=texts, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for column in table.columns[1:]:
        column.no_wrap = True  # only the model's name may go on in another line
    return table


def _number(value: float) -> str:
    """Write a number with three digits, or all of those before the point."""
    if value >= 99.95:
        return f"{value:,.0f}"
    for digits, limit in ((1, 9.995), (2, 0.9995)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3g}"
