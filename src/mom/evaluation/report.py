"""The table of results at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from mom.console import metrics_table
from mom.metrics.names import CHANCE, exact_match_names, metric_rows, pools_in


def results_table(
    columns: Mapping[str, Mapping[str, float]], title: str, caption: str | None = None
) -> Table:
    """Build a table with one column of results per model or validation set; see :func:`mom.console.metrics_table`."""
    matches, *buckets = exact_match_names(columns.values()) or [""]
    names = [matches, *(f"  {name}" for name in buckets), CHANCE] if matches else []
    names += ["val/loss", "val/perplexity", "val/bits_per_byte", "parameters"]
    names += ["depth/graph", "depth/effective", "depth/modules_per_token"]
    for pool in pools_in(columns.values(), "routing"):
        names += [f"routing/{pool}/skip_rate", f"routing/{pool}/skip_share"]
    names.append("throughput/tokens_per_second")
    return metrics_table(columns, metric_rows(names), title, caption)


def results_of_set(results: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the results of one of several validation sets, ``val/<name>/loss`` as ``val/loss``, for a column."""
    prefix = f"val/{name}/"
    return {
        f"val/{key.removeprefix(prefix)}": value for key, value in results.items() if key.startswith(prefix)
    }
