"""Words for what was measured: rows of the run's table, notes, tables of modules, and texts for figures.

The texts for figures are for those who do not see them (``alt``), so they say what the figure shows and not only
what it is of.
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
from mom.metrics.modules import KINDS, Pair, Removal
from mom.metrics.routing import POOLS

# Metric, what it is called, how it is written, what it means.
_FACTS = (
    ("parameters", "parameters", "{:,.0f}", ""),
    ("data/tokens", "tokens recorded", "{:,.0f}", ""),
    ("val/loss", "loss (nats per token)", "{:.4f}", "cross-entropy of the next token"),
    ("val/perplexity", "perplexity", "{:,.2f}", ""),
    ("depth/graph", "graph depth (blocks)", "{:.0f}", "bottom + top + anchors + stages × rounds"),
    (
        "depth/effective",
        "effective depth (blocks)",
        "{:.2f}",
        "a round counts ½ if attention took a module and ½ if FFN did",
    ),
    (
        "depth/weighted",
        "weighted depth (blocks)",
        "{:.2f}",
        "the weight of the modules in place of these halves",
    ),
    ("depth/modules_per_token", "modules per token", "{:.2f}", "a plain block counts 2"),
    ("routing/attention/skip_share", "attention: places held by SKIP", "{:.1%}", ""),
    ("routing/ffn/skip_share", "FFN: places held by SKIP", "{:.1%}", ""),
    ("flops/forward", "forward, no SKIP (GFLOP per sequence)", "giga", ""),
    (
        "flops/forward_actual",
        "forward, as routed (GFLOP per sequence)",
        "giga",
        "modules counted as they were used",
    ),
    (
        "removal/droppable",
        "modules that could go",
        "{:.0f}",
        "removed greedily, without training; see the table of modules",
    ),
)


def fact_rows(facts: Mapping[str, Any], header: Header) -> list[tuple[str, str, str]]:
    """The run's table: name, value, meaning."""
    config = header.config
    stages = "stage" if config.num_stages == 1 else "stages"
    layout = (
        f"{config.num_bottom_blocks} bottom; {config.num_stages} {stages} of {config.num_attention_modules} attention "
        f"+ {config.num_ffn_modules} FFN modules, {config.num_rounds} rounds{' and an anchor' * config.anchors}; "
        f"{config.num_top_blocks} top"
    )
    places = f"K = {config.top_k}" + ("" if config.ffn_top_k is None else f" and {config.ffn_top_k} for FFN")
    rows = [
        ("weights", header.source, ""),
        ("text", header.text, ""),
        ("layout", layout, f"router {config.router}, {places}, skip_rule {config.skip_rule}"),
    ]
    for name, label, form, meaning in _FACTS:
        if name in facts:
            value = f"{facts[name] / 1e9:,.2f}" if form == "giga" else form.format(facts[name])
            rows.append((label, value, meaning))
    return rows


def module_notes(removal: Removal | None, tolerance: float) -> list[str]:
    """Paragraphs above the tables of modules."""
    notes = [
        "Share: of the pool's places in all rounds. Weight: mean over these places. Tokens that set it apart: "
        "token types by q · ln(q / p), q their share of the module's places and p their share of all places; "
        "point at one for its numbers.",
    ]
    if removal is None:
        return notes
    notes.append(
        f"Alone: rise of the loss, in nats per token over {removal.tokens:,} predicted tokens (whole model: "
        f"{removal.loss:.4f}), when no round may take the module and nothing is trained. Greedily: the place of "
        "the module in the order in which removing the next one costs least, and the rise once it and all before "
        "it are gone. Nearest: the module of the pool with the most similar outputs, with their mean cosine."
    )
    if removal.greedy:
        droppable = removal.droppable(tolerance)
        listed = ", ".join(map(str, droppable)) or "none"
        notes.append(f"Could go together for at most {tolerance:g} nats: {listed}.")
    return notes


def pool_tables(header: Header, modules: Rows, tokens: Rows) -> list[PoolTable]:
    """The tables of modules for the report."""
    tables = []
    for stage in header.stages:
        for kind in POOLS:
            rows = [row for row in modules if (row["stage"], row["kind"]) == (stage, kind)]
            own = [row for row in tokens if (row["stage"], row["kind"]) == (stage, kind)]
            place = f", stage {stage}" if len(header.stages) > 1 else ""
            headings, cells = module_cells(rows)
            tables.append(
                PoolTable(
                    title=f"{KINDS[kind].capitalize() if kind == 'attention' else KINDS[kind]}{place}",
                    kind=kind,
                    stage=stage,
                    headings=headings,
                    rows=[
                        {
                            "choice": row["choice"],
                            "name": slot_name(row),
                            "full_name": f"{KINDS[kind]} {slot_name(row)}{place}",
                            "numbers": numbers,
                            "tokens": [_top(one) for one in own if one["choice"] == row["choice"]],
                        }
                        for row, numbers in zip(rows, cells, strict=True)
                    ],
                )
            )
    return tables


def _form(name: str, form: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda row: None if row[name] is None else form.format(row[name])


def _nearest(row: Mapping[str, Any]) -> str | None:
    return None if row["nearest"] is None else f"{row['nearest']} ({row['nearest_cosine']:.2f})"


MODULE_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str | None]] = {
    "share": _form("share", "{:.1%}"),
    "weight": _form("mean_weight", "{:.2f}"),
    "alone": _form("loss_rise", "{:+.4f}"),
    "greedily": _form("removed", "{}"),
    "rise then": _form("loss_rise_then", "{:+.4f}"),
    "nearest": _nearest,
}
"""Columns of :func:`mom.analysis.tables.module_table` that are shown: heading, and what is written, if anything."""


def module_cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of those columns of :data:`MODULE_COLUMNS` that have something in them."""
    written = {name: [write(row) for row in rows] for name, write in MODULE_COLUMNS.items()}
    used = [name for name, cells in written.items() if any(cell is not None for cell in cells)]
    return used, [[written[name][place] or "–" for name in used] for place in range(len(rows))]


def slot_name(row: Mapping[str, Any]) -> str:
    """A module's number, or SKIP."""
    return "SKIP" if row["is_skip"] else str(row["choice"])


def footer(source: str, text: str, fingerprint: str) -> str:
    """How the page was made."""
    return (
        f"Made by mom {__version__}, task=analyze, of {source} on {text} (corpus {fingerprint[:16]}). Rounds, stages, "
        "modules and tokens are counted from 0, as in the routing records. Definitions: docs/analysis.md."
    )


def describe_use(header: Header, routing: Mapping[str, Routing]) -> str:
    """Which module each pool takes most in each round."""
    parts = []
    for kind, one in routing.items():
        slots = [*map(str, range(header.num_modules(kind))), "SKIP"]
        shares = one.places / np.maximum(one.places.sum(axis=1, keepdims=True), 1)
        most = [f"{slots[row.argmax()]} ({row.max():.0%})" for row in shares]
        parts.append(f"{KINDS[kind]}: {', '.join(most)}")
    return f"Heat maps. The most taken in each round, from round 0 on: {'; '.join(parts)}."


def describe_binned(of: str, binned: Binned) -> str:
    """The weighted depth at both ends."""
    mean, edges = binned.mean(), np.asarray(binned.edges, dtype=float)
    there = np.flatnonzero(~np.isnan(mean))
    if not len(there):
        return f"Depth by {of}; there are no tokens."
    first, last = there[0], there[-1]
    return (
        f"Mean depth by {of}. Weighted depth is {mean[first]:.2f} from {edges[first]:,.3g} to {edges[first + 1]:,.3g} "
        f"and {mean[last]:.2f} from {edges[last]:,.3g} to {edges[last + 1]:,.3g}."
    )


def describe_similarity(pairs: Sequence[Pair], stage: int) -> str:
    """The two modules of each pool whose outputs are most alike."""
    parts = []
    for kind in POOLS:
        own = [pair for pair in pairs if (pair.first.stage, pair.first.kind) == (stage, kind)]
        if own:
            best = max(own, key=lambda pair: pair.outputs)
            parts.append(
                f"{KINDS[kind]} {best.first.number} and {best.second.number} are most alike in their outputs "
                f"(mean cosine {best.outputs:.2f}, CKA {best.cka:.2f})"
            )
    return f"Heat maps between modules. {'; '.join(parts)}."


def describe_removal(removal: Removal, tolerance: float) -> str:
    """What costs most and least, and how many could go."""
    most, least = (find(removal.alone, key=removal.alone.__getitem__) for find in (max, min))
    text = (
        f"Bars and a curve of the loss without modules. Alone, {most} costs most "
        f"({removal.alone[most] - removal.loss:+.3f} nats) and {least} least "
        f"({removal.alone[least] - removal.loss:+.3f})."
    )
    if removal.greedy:
        text += f" Greedily, {len(removal.droppable(tolerance))} can go for at most {tolerance:g} nats."
    return text


def _top(row: Mapping[str, Any]) -> dict[str, str]:
    text = row["text"].replace("\n", "⏎").replace("\t", "→")
    return {
        "text": text.replace(" ", "␣") if not text.strip() else text,
        "title": f"{row['places']:,} places, {row['share']:.0%} of the token's, {row['lift']:.1f} × the pool's rate",
    }
