"""Tables on the terminal, and in files as wide as they need to be."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_WIDEST = 1000


def standard_output(width: int | None = None) -> Console:
    """The terminal, or where the output goes in its place; brackets are text there, not markup.

    Args:
        width: in characters; ``None`` takes the terminal's.
    """
    return Console(width=width, markup=False)


def print_table(table: Table, console: Console) -> None:
    """Print a table; where the output is no terminal, no column is cut or folded to a terminal's width."""
    if not console.is_terminal:
        wanted = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
        console.width = max(console.width, wanted)
    console.print(table)
