"""The table of results at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from mom.console import MetricRow, metrics_table

ROWS = (
    ("validation loss (nats/token)", "val/loss", "{:.4f}"),
    ("perplexity", "val/perplexity", "{:,.2f}"),
    ("bits per byte", "val/bits_per_byte", "{:.4f}"),
    ("parameters", "parameters", "{:,.0f}"),
    ("graph depth (blocks)", "depth/graph", "{:.0f}"),
    ("effective depth (blocks)", "depth/effective", "{:.2f}"),
    ("modules per token", "depth/modules_per_token", "{:.2f}"),
    ("attention: steps skipped", "routing/attention/skip_rate", "{:.1%}"),
    ("attention: places held by SKIP", "routing/attention/skip_share", "{:.1%}"),
    ("FFN: steps skipped", "routing/ffn/skip_rate", "{:.1%}"),
    ("FFN: places held by SKIP", "routing/ffn/skip_share", "{:.1%}"),
    ("training tokens per second", "throughput/tokens_per_second", "{:,.0f}"),
)


def results_table(
    columns: Mapping[str, Mapping[str, float]], title: str, caption: str | None = None
) -> Table:
    """Build a table with one column of results per model; see :func:`mom.console.metrics_table`."""
    return metrics_table(columns, (MetricRow(*row) for row in ROWS), title, caption)
