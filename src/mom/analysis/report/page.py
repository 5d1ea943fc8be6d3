"""Render ``report.html`` from recorded traces and measurements with ``template.html``.

The page is self-contained: style, script, figures, and the data of the token path viewer as typed arrays in base64.
Its content security policy forbids loading anything else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from mom.analysis.tables import token_text
from mom.analysis.traces import Traces
from mom.plots.style import is_constant, svg

_STEPS = 65_534
# Measures to color tokens by: column, label, decimals.
MEASURES = (
    ("effective_depth", "effective depth (blocks)", 1),
    ("weighted_depth", "weighted depth (blocks)", 2),
    ("modules_per_token", "modules per token", 0),
    ("loss", "loss of the next token (nats)", 2),
)


@dataclass(frozen=True)
class ReportFigure:
    """A figure with a caption and a description for readers who cannot see it."""

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Headline:
    """A number that matters, at the top of the page.

    Attributes:
        value: the number with its unit.
        label: what it is.
        note: how to read it, and what it was measured on.
    """

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class PoolTable:
    """The table of a pool's modules.

    Attributes:
        title: heading of the table.
        kind: the pool's name.
        stage: the pool's stage.
        headings: headings of the columns of numbers.
        rows: for each choice ``choice``, ``name``, ``full_name``, ``numbers`` (as text), and ``tokens`` (each with
            ``text`` and ``title``).
    """

    title: str
    kind: str
    stage: int
    headings: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of text with a title and a note above it."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(
    traces: Traces,
    tokenizer: PreTrainedTokenizerFast | None,
    *,
    title: str,
    subtitle: str,
    headlines: Sequence[Headline],
    facts: Sequence[tuple[str, str, str]],
    pools: Sequence[PoolTable],
    module_notes: Sequence[str],
    choices: Sequence[Table],
    figures: Sequence[ReportFigure],
    footer: str,
    num_tokens: int,
) -> str:
    """Render the page as HTML.

    Args:
        traces: the recorded traces.
        tokenizer: the model's tokenizer; ``None`` shows numbers.
        title: title of the page.
        subtitle: the model and the text.
        headlines: the numbers that matter.
        facts: rows of the run's table: name, value, meaning.
        pools: tables of modules.
        module_notes: paragraphs above these tables.
        choices: tables about the routers' choices.
        figures: figures to embed as SVG.
        footer: a line about how the page was made.
        num_tokens: maximum number of tokens in the viewer, from the start of the text.
    """
    data = viewer_data(traces, tokenizer, num_tokens)
    shown = f"The first {data['count']:,} of {traces.num_tokens:,} recorded tokens."
    if data["count"] == traces.num_tokens:
        shown = f"All {traces.num_tokens:,} recorded tokens."
    folder = files("mom.analysis.report")
    style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "viewer.js"))
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(folder.joinpath("template.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        headlines=headlines,
        facts=facts,
        pools=pools,
        module_notes=module_notes,
        shown=shown,
        choices=choices,
        figures=[
            {"svg": base64.b64encode(svg(item.figure)).decode(), "alt": item.alt, "caption": item.caption}
            for item in figures
        ],
        footer=footer,
        style=style,
        style_hash=content_hash(style),
        script=script,
        script_hash=content_hash(script),
        data=script_json(data),
    )


def content_hash(text: str) -> str:
    """Return the hash by which a content security policy allows an inline script or style, and nothing else."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def script_json(data: Any) -> str:
    """Write JSON that is safe in a script element: without ``<``, it cannot end the script or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def viewer_data(traces: Traces, tokenizer: PreTrainedTokenizerFast | None, num_tokens: int) -> dict[str, Any]:
    """Return the data of the viewer's script, for the first ``num_tokens`` tokens."""
    header, config = traces.header, traces.header.config
    tokens = traces.tokens(first=num_tokens)
    columns = {name: tokens[name].to_numpy() for name in tokens.schema.names}
    count = tokens.num_rows
    texts = pieces(tokenizer, columns["token_id"].tolist())
    following = columns["next_id"].tolist()
    predicted = columns["predicted_id"].tolist()
    alone = {token: token_text(tokenizer, token) for token in {*following, *predicted} if token >= 0}
    names = {text: number for number, text in enumerate(dict.fromkeys([*texts, *alone.values(), ""]))}
    own = {token: names[text] for token, text in alone.items()} | {-1: names[""]}
    rounds = [(stage, number) for stage in header.stages for number in range(header.num_rounds)]
    kinds = {}
    for pool, (choice, weight) in _choices(traces, rounds, count).items():
        kinds[pool] = {
            "label": header.pools[pool].label,
            "modules": header.num_modules(pool),
            "places": choice.shape[-1],
            "choice": packed(choice),
            "weight": packed_real(weight),
        }
    varied = [name for name, _, _ in MEASURES if not is_constant(columns[name])]
    return {
        "count": count,
        "pieces": list(names),
        "piece": packed(np.array([names[text] for text in texts], dtype=np.int64)),
        "next": packed(np.array([own[token] for token in following], dtype=np.int64)),
        "predicted": packed(np.array([own[token] for token in predicted], dtype=np.int64)),
        "right": packed(columns["next_id"] == columns["predicted_id"]),
        "probability": packed_real(np.exp(-columns["loss"].astype(np.float64))),
        "best": packed_real(columns["predicted_probability"]),
        **{name: packed(columns[name]) for name in ("window", "position", "document", "token_id")},
        "measures": [
            {"name": label, "digits": digits, "values": packed_real(columns[name])}
            for name, label, digits in MEASURES
        ],
        # The first measure that differs between tokens; effective depth does not with K >= 2 and skip_rule share.
        "colored_by": next((n for n, (name, _, _) in enumerate(MEASURES) if name in varied), 0),
        "rounds": rounds,
        "kinds": kinds,
        "bottom": config.num_bottom_blocks,
        "top": config.num_top_blocks,
        "anchors": config.anchors,
    }


def pieces(tokenizer: PreTrainedTokenizerFast | None, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined, these are the complete text.

    A character that consists of several tokens belongs to the last of these; the others add "". Without a tokenizer,
    tokens are written as numbers.
    """
    if tokenizer is None:
        return [f"{token} " for token in ids]
    stream = DecodeStream(skip_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    return [stream.step(backend, int(token)) or "" for token in ids]


def packed(values: np.ndarray) -> dict[str, Any]:
    """Pack nonnegative integers of any shape into as few bytes as possible, little-endian in base64."""
    most = int(values.max(initial=0))
    size = next(size for size in (1, 2, 4) if most < 256**size)
    return {"type": f"u{size}", "data": _base64(values.astype(f"<u{size}"))}


def packed_real(values: np.ndarray) -> dict[str, Any]:
    """Pack real numbers as 65,534 steps between their minimum and maximum; the next value encodes NaN."""
    values = values.astype(np.float64)
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scaled = np.rint((values - low) / ((high - low) or 1.0) * _STEPS)
    stored = np.where(np.isnan(values), _STEPS + 1, np.nan_to_num(scaled)).astype("<u2")
    return {"type": "u2", "low": low, "high": high, "steps": _STEPS, "data": _base64(stored)}


def _choices(
    traces: Traces, rounds: Sequence[tuple[int, int]], count: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return choices and weights of the first ``count`` tokens for each pool, [count, rounds, K] each."""
    index_of = {key: index for index, key in enumerate(rounds)}
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for stage, number, pool, rows in traces.steps(first=count):
        size = int(rows["place"].to_numpy().max()) + 1
        if pool not in tables:
            shape = (count, len(rounds), size)
            tables[pool] = (np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32))
        first = rows["token"][0].as_py()
        for table, name in zip(tables[pool], ("choice", "weight"), strict=True):
            values = rows[name].to_numpy().reshape(-1, size)[: count - first]
            table[first : first + len(values), index_of[stage, number]] = values
    return {pool: tables[pool] for pool in traces.header.pools}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
