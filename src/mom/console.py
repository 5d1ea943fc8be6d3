"""Terminal output: tables, reports and announcements, from the first process only where there are several."""

from __future__ import annotations

from pathlib import Path

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


def print_report(
    table: Table, directory: Path, console: Console | None = None, picture: Path | None = None
) -> None:
    """Print a table and where its run was written.

    Args:
        table: the results.
        directory: the run directory.
        console: where to print; ``None`` is the standard output.
        picture: a figure of the routing, mentioned if the file exists.
    """
    if not _is_first_process():
        return
    console = console or standard_output()
    console.print()
    print_table(table, console)
    console.print(f"Written to {directory}", soft_wrap=True, highlight=False)
    if picture is not None and picture.is_file():
        console.print(f"Which modules each round used: {picture}", soft_wrap=True, highlight=False)


def announce(message: str) -> None:
    """Print what comes next."""
    if _is_first_process():
        print(message, flush=True)


def _is_first_process() -> bool:
    from lightning.fabric.utilities.rank_zero import rank_zero_only  # here, as it takes a second to import

    return getattr(rank_zero_only, "rank", 0) == 0
