"""Console output of a sweep: a line when a job starts or ends, and a final table of all jobs."""

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


def print_job_started(job: Job) -> None:
    """Print that a job started, and the file with its output."""
    _print(f"{job.folder}: {job.label} → {OUTPUT}")


def print_job_finished(job: Job, state: str | None = None) -> None:
    """Print how a job ended; ``state`` replaces the job's own."""
    value = job.summary.get(METRIC) if job.state == "succeeded" else None
    _print(f"{job.folder}: {state or job.state}" + (f", {METRIC} {value:.4f}" if value is not None else ""))


def print_jobs(jobs: Sequence[Job], folder: Path, console: Console | None = None) -> None:
    """Print a table of the jobs with their states, followed by the errors of those that failed.

    Args:
        jobs: the jobs in the order of the sweep.
        folder: the sweep's directory.
        console: console to print to; ``None`` is the standard output.
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
            _print(f"{job.folder}: {job.error}", console)
    _print(f"Written to {folder}", console)


def _print(line: str, console: Console | None = None) -> None:
    (console or standard_output()).print(line, soft_wrap=True, highlight=False, markup=False)
