"""Console output of a sweep: a line when a job starts or ends, and a final table of all jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from mom.config.data import data_section
from mom.config.overrides import without, written_overrides
from mom.console import build_table, print_line, print_table
from mom.data.controls import Control
from mom.metrics.names import CHANCE, EXACT_MATCH, FFN_BY_RULE, exact_match_names, label
from mom.runs.program import command_line
from mom.sweeps.jobs import Job
from mom.sweeps.process import OUTPUT

METRIC = "val/loss"
_COLORS = {"succeeded": "green", "failed": "red", "interrupted": "yellow"}


def print_job_started(job: Job) -> None:
    """Print that a job started, and the file with its output."""
    print_line(f"{job.folder}: {job.label} → {OUTPUT}")


def print_job_finished(job: Job, state: str | None = None) -> None:
    """Print how a job ended: its own state unless ``state`` is given."""
    value = _metric(job)
    print_line(f"{job.folder}: {state or job.state}" + (f", {METRIC} {value}" if value is not None else ""))


def print_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Print a table of the jobs in the sweep's directory, followed by the errors of those that failed.

    It has the validation loss and, for jobs that train on a control, the exact match of each bucket and of chance. Jobs
    on one control are also compared in a sentence, and the picture of the best job's modules by rule is named.
    """
    measured = [job.summary if job.state == "succeeded" else {} for job in jobs]
    matches = exact_match_names(measured)
    names = [*matches, *([CHANCE] if matches else []), METRIC]
    names = [name for name in names if any(name in summary for summary in measured)]
    headings = ["folder", "job", "state"]
    headings += [METRIC if name == METRIC else label(name).text for name in names]
    rows = []
    for job, summary in zip(jobs, measured, strict=True):
        state = Text(job.state, style=_COLORS.get(job.state, ""))
        cells = [label(name).form.format(summary[name]) if name in summary else None for name in names]
        rows.append([str(job.folder.relative_to(folder)), job.label or None, state, *cells])
    table = build_table(
        headings,
        rows,
        title=f"{len(jobs)} job{'s' * (len(jobs) != 1)}",
        texts=3,
    )
    print()
    print_table(table)
    for job in jobs:
        if job.state == "failed":
            print_line(f"{job.folder}: {job.error}")
    for line in _conclusion(jobs):
        print_line(line)
    print_line(f"Written to {folder}")


def print_next(jobs: Sequence[Job], folder: Path) -> None:
    """Print the commands that resume the unfinished jobs of a sweep, and compare the finished ones."""
    states = [job.state for job in jobs]
    place = str(folder)
    commands = []
    if any(state != "succeeded" for state in states):
        again = without(sys.argv[1:], "hydra.sweep.dir")
        commands.append(command_line([*again, *written_overrides({"hydra.sweep.dir": place})]))
    if states.count("succeeded") > 1:
        commands.append(command_line(["task=compare", *written_overrides({"runs": place})]))
    if commands:
        print_line("\nNext:")
    for command in commands:
        print_line(f"  {command}")


def _conclusion(jobs: Sequence[Job]) -> list[str]:
    """Return lines that compare the two best jobs on a control; none if jobs failed or their data differ."""
    data = [job.config.get("data", {}) for job in jobs]
    if len(jobs) < 2 or data[0].get("kind") != "control" or any(other != data[0] for other in data):
        return []
    control = data_section(data[0])
    assert isinstance(control, Control)
    metric = f"{EXACT_MATCH}/{control.headline}"
    if any(job.state != "succeeded" or metric not in job.summary for job in jobs):
        return []
    best, second = sorted(jobs, key=lambda job: -job.summary[metric])[:2]
    lines = [
        f"{label(metric).text}: {best.label} answers {best.summary[metric]:.1%} correctly, the next best, "
        f"{second.label}, {second.summary[metric]:.1%}; guessing gives {best.summary[CHANCE]:.1%}"
    ]
    picture = best.folder / f"{FFN_BY_RULE}.png"
    if picture.is_file():
        lines.append(f"Modules that {best.label} runs for each rule: {picture}")
    return lines


def _metric(job: Job) -> str | None:
    value = job.summary.get(METRIC) if job.state == "succeeded" else None
    return None if value is None else f"{value:.4f}"
