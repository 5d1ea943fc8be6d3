"""What a sweep says: a line when a job starts and ends, and a table of all at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mom.console import print_table, standard_output
from mom.sweeps.jobs import Job
from mom.sweeps.process import OUTPUT

METRIC = "val/loss"
_COLORS = {"succeeded": "green", "failed": "red", "interrupted": "yellow"}


def tell_started(job: Job) -> None:
    """Say that a job's process begins, and where its output goes."""
    _say(f"{job.folder}: {job.label} → {OUTPUT}")


def tell_ended(job: Job, how: str | None = None) -> None:
    """Say how a job ended; ``how`` if its state does not tell."""
    value = job.summary.get(METRIC) if job.state == "succeeded" else None
    _say(f"{job.folder}: {how or job.state}" + (f", {METRIC} {value:.4f}" if value is not None else ""))


def print_jobs(jobs: Sequence[Job], folder: Path, console: Console | None = None) -> None:
    """Print a table of the jobs with their states, and under it why some failed.

    Args:
        jobs: in the order of the sweep.
        folder: of the sweep.
        console: where to.
    """
    console = console or standard_output()
    table = Table(title=f"{len(jobs)} job{'s' * (len(jobs) != 1)}", title_justify="left")
    table.add_column("folder")
    table.add_column("job", overflow="fold")
    table.add_column("state")
    values = [job.summary.get(METRIC) if job.state == "succeeded" else None for job in jobs]
    if any(value is not None for value in values):
        table.add_column(METRIC, justify="right")
    for job, value in zip(jobs, values, strict=True):
        state = Text(job.state, style=_COLORS.get(job.state, ""))
        shown = ["–" if value is None else f"{value:.4f}"] if len(table.columns) == 4 else []
        table.add_row(str(job.folder.relative_to(folder)), job.label or "–", state, *shown)
    console.print()
    print_table(table, console)
    for job in jobs:
        if job.state == "failed":
            _say(f"{job.folder}: {job.error}", console)
    _say(f"Written to {folder}", console)


def _say(line: str, console: Console | None = None) -> None:
    (console or standard_output()).print(line, soft_wrap=True, highlight=False, markup=False)
