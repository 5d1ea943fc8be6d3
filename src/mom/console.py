"""Terminal output: tables and messages, printed by the first process only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

MISSING = "–"
"""Table cell for a missing value."""

_MAX_WIDTH = 1000


class MetricRow(NamedTuple):
    """A row of :func:`metrics_table`.

    Attributes:
        label: a noun with its unit.
        name: the metric's name.
        form: format string for the value divided by ``unit``.
    """

    label: str
    name: str
    form: str
    unit: float = 1


def standard_output(width: int | None = None) -> Console:
    """Return a console for standard output that prints square brackets instead of reading them as markup.

    Args:
        width: in characters; ``None`` uses the terminal's width.
    """
    return Console(width=width, markup=False)


def build_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    caption: str | None = None,
    texts: int = 1,
    **options: Any,
) -> Table:
    """Build a table of text and numbers.

    Args:
        headings: one per column.
        rows: their cells; ``None`` is shown as a dash.
        title: printed above the table.
        caption: printed below the table.
        texts: number of leading text columns, which are left-aligned; the others are right-aligned.
        options: further options of ``rich.table.Table``.
    """
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", **options)
    for index, heading in enumerate(headings):
        if index < texts:
            table.add_column(heading, min_width=4, overflow="fold")
        else:
            table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(MISSING if cell is None else cell for cell in row))
    return table


def metrics_table(
    columns: Mapping[str, Mapping[str, float]],
    rows: Iterable[MetricRow],
    title: str,
    caption: str | None = None,
) -> Table:
    """Build a table with one column of metrics per model.

    ``columns`` maps headings to metrics. A metric that a model lacks is shown as a dash; a row of dashes is omitted.
    """
    body = []
    for label, name, form, unit in rows:
        values = [metrics.get(name) for metrics in columns.values()]
        if any(value is not None for value in values):
            body.append([label, *(None if value is None else form.format(value / unit) for value in values)])
    return build_table(["", *columns], body, title=title, caption=caption)


def print_table(table: Table, console: Console | None = None, *, directory: Path | None = None) -> None:
    """Print a table, and below it where the results were written; only a terminal truncates or wraps columns."""
    if not _is_first_process():
        return
    console = console or standard_output()
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=_MAX_WIDTH)).maximum
        console.width = max(console.width, needed)
    console.print(table)
    if directory is not None:
        print_line(f"Written to {directory}", console)


def print_report(
    table: Table, directory: Path, console: Console | None = None, picture: Path | None = None
) -> None:
    """Print a run's results and where they were written, with the path of ``picture`` if that file exists."""
    if not _is_first_process():
        return
    console = console or standard_output()
    console.print()
    print_table(table, console, directory=directory)
    if picture is not None and picture.is_file():
        print_line(f"Modules used in each round: {picture}", console)


def print_line(text: str, console: Console | None = None) -> None:
    """Print a line that is neither wrapped nor highlighted."""
    if _is_first_process():
        (console or standard_output()).print(text, soft_wrap=True, highlight=False)


def announce(message: str) -> None:
    """Print a progress message at once, even if the output is buffered."""
    if _is_first_process():
        print(message, flush=True)


def _is_first_process() -> bool:
    """Return whether this process has rank 0; without Lightning, a run has only one process."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    return lightning is None or getattr(lightning.rank_zero_only, "rank", 0) == 0
