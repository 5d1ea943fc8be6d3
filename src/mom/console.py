"""Terminal output: tables and messages, printed by the first process only."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

MISSING = "–"
"""Table cell for a missing value."""

_MAX_WIDTH = 1000
_CUT = (12, 8, 4)
"""Widths to which the words of text columns are cut, one after another, if there is no room for them."""


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


def can_redraw(stream: TextIO) -> bool:
    """Return whether a line on this stream can be drawn again: in a terminal, but not in a file or a notebook.

    ``FORCE_COLOR``, which notebooks set, asks for colors only. A command after ``!`` in a notebook has a terminal that
    keeps every frame.
    """
    is_notebook = "JPY_PARENT_PID" in os.environ
    return stream.isatty() and not is_notebook and os.environ.get("TERM") != "dumb"


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
    """Print a table, and below it where the results were written; only a terminal wraps columns."""
    if not _is_first_process():
        return
    console = console or standard_output()
    if not console.is_terminal:
        console.width = max(console.width, _width(table, console))
    elif _width(table, console) > console.width:
        _narrow(table, console)
    console.print(table)
    if directory is not None:
        print_line(f"Written to {directory}", console)


def _width(table: Table, console: Console) -> int:
    """Return the width of a table that is neither wrapped nor cut."""
    return console.measure(table, options=console.options.update(max_width=_MAX_WIDTH)).maximum


def _narrow(table: Table, console: Console) -> None:
    """Narrow the widest columns, at the ends of words as long as that is enough; words of headings also end at _ and /.

    Numbers are never cut: a table for which there is still no room is wider than the terminal.
    """
    table.collapse_padding = True

    def longest(column: Column, separator: str | None) -> int:
        parts = [part for text in (column.header, *column.cells) for part in str(text).split(separator)]
        return max(map(cell_len, parts), default=0)

    for column in table.columns:
        column.header = re.sub(r"(?<=[_/])(?=\w)", "\n", str(column.header))
        column.min_width = None
    excess = _width(table, console) - console.width
    widths = [longest(column, "\n") for column in table.columns]
    words = [longest(column, None) for column in table.columns]
    is_text = [column.justify == "left" for column in table.columns]
    cut = [
        [min(word, most) if text else word for word, text in zip(words, is_text, strict=True)]
        for most in _CUT
    ]
    for least in (words, *cut):
        while excess > 0:
            index = max(range(len(widths)), key=lambda index: (widths[index] > least[index]) * widths[index])
            if widths[index] <= least[index]:
                break
            widths[index] -= 1
            excess -= 1
    widths[0] += table.pad_edge  # Rich forgets one side of its padding if padding is collapsed
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    console.width += max(0, excess)


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
