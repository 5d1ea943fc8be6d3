"""Texts of the report: rows of the run's table, notes, tables of modules, and descriptions of figures.

Descriptions (``alt``) are for readers who cannot see a figure, so they state its content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mom import __version__
from mom.analysis.report.page import PoolTable
from mom.analysis.statistics import Routing
from mom.analysis.tables import Rows
from mom.analysis.traces import Header
from mom.metrics.depth import Binned
from mom.metrics.modules import Pair, Removal
from mom.metrics.names import label, pool_label

_FACTS = (
    "parameters",
    "data/tokens",
    "val/loss",
    "val/perplexity",
    "depth/graph",
    "depth/effective",
    "depth/weighted",
    "depth/modules_per_token",
)
_COSTS = ("flops/forward", "flops/forward_actual", "removal/droppable")


def fact_rows(facts: Mapping[str, Any], header: Header) -> list[tuple[str, str, str]]:
    """Return the rows of the run's table: name, value, meaning."""
    config, layouts = header.config, header.pools.values()
    modules = " + ".join(f"{layout.num_modules} {layout.label}" for layout in layouts)
    stages = "stage" if config.num_stages == 1 else "stages"
    layout = (
        f"{config.num_bottom_blocks} bottom; {config.num_stages} {stages} of {modules} modules, "
        f"{config.num_rounds} rounds{' and an anchor' * config.anchors}; {config.num_top_blocks} top"
    )
    top_k = [f"K = {layout.top_k} for {layout.label}" for layout in layouts]
    if len({layout.top_k for layout in layouts}) == 1:
        top_k = [f"K = {config.pools()[0].top_k}"]
    rows = [
        ("weights", header.source, ""),
        ("text", header.text, ""),
        ("layout", layout, f"router {config.router}, {', '.join(top_k)}, skip_rule {config.skip_rule}"),
    ]
    skips = [f"routing/{pool}/skip_share" for pool in header.pools]
    for name in (*_FACTS, *skips, *_COSTS):
        if name in facts:
            how = label(name)
            if name == "val/loss":  # the text need not be validation data
                how = how._replace(text="loss (nats/token)")
            rows.append((how.text, how.write(facts[name]), how.meaning))
    return rows


def module_notes(removal: Removal | None, tolerance: float) -> list[str]:
    """Return the paragraphs above the tables of modules."""
    notes = [
        "Share: fraction of the pool's assignments in all rounds. Weight: mean over these assignments. Favorite "
        "tokens: token types by q · ln(q / p), where q is their fraction of the module's assignments and p their "
        "fraction of all assignments; point at a token for its numbers.",
    ]
    if removal is None:
        return notes
    notes.append(
        f"Alone: loss increase in nats per token, over {removal.tokens:,} predicted tokens (complete model: "
        f"{removal.loss:.4f}), when no round can choose the module; nothing is trained. Greedy: the module's rank in "
        "order of smallest loss increase, and the loss increase once it and all before it are removed. Nearest: the "
        "module of the pool with the most similar outputs, and their mean cosine."
    )
    if removal.greedy:
        removable = ", ".join(map(str, removal.droppable(tolerance))) or "none"
        notes.append(f"Removable together for at most {tolerance:g} nats: {removable}.")
    return notes


def pool_tables(header: Header, modules: Rows, tokens: Rows) -> list[PoolTable]:
    """Return the report's tables of modules, one for each pool of each stage."""
    tables = []
    for stage in header.stages:
        for pool, layout in header.pools.items():
            rows = [row for row in modules if (row["stage"], row["kind"]) == (stage, pool)]
            own = [row for row in tokens if (row["stage"], row["kind"]) == (stage, pool)]
            where = f", stage {stage}" if len(header.stages) > 1 else ""
            headings, cells = module_cells(rows)
            tables.append(
                PoolTable(
                    title=f"{layout.label[0].upper()}{layout.label[1:]}{where}",
                    kind=pool,
                    stage=stage,
                    headings=headings,
                    rows=[
                        {
                            "choice": row["choice"],
                            "name": slot_name(row),
                            "full_name": f"{layout.label} {slot_name(row)}{where}",
                            "numbers": numbers,
                            "tokens": [_top(token) for token in own if token["choice"] == row["choice"]],
                        }
                        for row, numbers in zip(rows, cells, strict=True)
                    ],
                )
            )
    return tables


def _form(name: str, form: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda row: None if row[name] is None else form.format(row[name])


def _nearest(row: Mapping[str, Any]) -> str | None:
    return None if row["nearest"] is None else f"{row['nearest']} ({row['nearest_cosine']:z.2f})"


MODULE_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str | None]] = {
    "share": _form("share", "{:.1%}"),
    "weight": _form("mean_weight", "{:.2f}"),
    "alone": _form("loss_rise", "{:+z.4f}"),
    "greedy": _form("removed", "{}"),
    "cumulative increase": _form("loss_rise_then", "{:+z.4f}"),
    "nearest": _nearest,
}
"""Columns of :func:`mom.analysis.tables.module_table` to show: the heading, and a function that formats a cell."""


def module_cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the :data:`MODULE_COLUMNS` that are not empty."""
    written = {name: [write(row) for row in rows] for name, write in MODULE_COLUMNS.items()}
    used = [name for name, cells in written.items() if any(cell is not None for cell in cells)]
    return used, [[written[name][index] or "–" for name in used] for index in range(len(rows))]


def slot_name(row: Mapping[str, Any]) -> str:
    """Return a module's number, or SKIP."""
    return "SKIP" if row["is_skip"] else str(row["choice"])


def footer(source: str, text: str, fingerprint: str) -> str:
    """Return a line about how the page was made."""
    return (
        f"Made by mom {__version__}, task=analyze, from {source} on {text} (corpus {fingerprint[:16]}). Rounds, "
        "stages, modules, and tokens are counted from 0, as in the routing records. Definitions: docs/analysis.md."
    )


def describe_use(header: Header, routing: Mapping[str, Routing]) -> str:
    """Name the most frequent choice of each pool in each round."""
    parts = []
    for pool, usage in routing.items():
        slots = [*map(str, range(header.num_modules(pool))), "SKIP"]
        shares = usage.assignments / np.maximum(usage.assignments.sum(axis=1, keepdims=True), 1)
        most = [f"{slots[row.argmax()]} ({row.max():.0%})" for row in shares]
        parts.append(f"{header.pools[pool].label}: {', '.join(most)}")
    return f"Heat maps. The most frequent choice in each round, from round 0 on: {'; '.join(parts)}."


def describe_binned(variable: str, binned: Binned) -> str:
    """State the weighted depth at both ends of a variable's range."""
    mean, edges = binned.mean(), np.asarray(binned.edges, dtype=float)
    filled = np.flatnonzero(~np.isnan(mean))
    if not len(filled):
        return f"Depth by {variable}; there are no tokens."
    first, last = filled[0], filled[-1]
    return (
        f"Mean depth by {variable}. Weighted depth is {mean[first]:.2f} from {edges[first]:,.3g} to "
        f"{edges[first + 1]:,.3g} and {mean[last]:.2f} from {edges[last]:,.3g} to {edges[last + 1]:,.3g}."
    )


def describe_similarity(pairs: Sequence[Pair], stage: int) -> str:
    """Name the two modules of each pool with the most similar outputs."""
    parts = []
    for pool in dict.fromkeys(pair.first.kind for pair in pairs if pair.first.stage == stage):
        own = [pair for pair in pairs if (pair.first.stage, pair.first.kind) == (stage, pool)]
        best = max(own, key=lambda pair: pair.outputs)
        parts.append(
            f"{pool_label(pool)} {best.first.number} and {best.second.number} have the most similar outputs "
            f"(mean cosine {best.outputs:z.2f}, CKA {best.cka:.2f})"
        )
    return f"Heat maps of the similarity of modules. {'; '.join(parts)}."


def describe_removal(removal: Removal, tolerance: float) -> str:
    """Name the modules with the largest and smallest loss increase, and count the removable modules."""
    most, least = (find(removal.alone, key=removal.alone.__getitem__) for find in (max, min))
    text = (
        f"Bars and a curve of the loss without modules. Alone, {most} costs most "
        f"({removal.alone[most] - removal.loss:+z.3f} nats) and {least} least "
        f"({removal.alone[least] - removal.loss:+z.3f})."
    )
    if removal.greedy:
        text += f" In greedy order, {len(removal.droppable(tolerance))} can be removed for at most {tolerance:g} nats."
    return text


def _top(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a distinctive token's visible text and its numbers."""
    text = row["text"].replace("\n", "⏎").replace("\t", "→")
    share = f"{row['share']:.0%} of the token's"
    return {
        "text": text.replace(" ", "␣") if not text.strip() else text,
        "title": f"{row['places']:,} assignments, {share}, {row['lift']:.1f}× the pool's rate",
    }
