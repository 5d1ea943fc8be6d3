"""Compare runs in one table and one figure, from run directories or tables of runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from tabulate import tabulate

from mom.config import CompareConfig, RunConfig
from mom.console import print_table, standard_output
from mom.errors import UsageError
from mom.plots.comparison import draw, draw_by_cost
from mom.runs.comparison import ABSENT, Comparison, Group, compare
from mom.runs.directory import RunDirectory
from mom.runs.records import Run, find_runs, write_table

NAME = "comparison"


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Print a table of the groups of runs, best first, and write it with a figure.

    Writes ``comparison.md``, ``.csv`` (all digits), ``.tex``, ``.png`` and ``.svg``; with ``task.cost_metric`` also
    the figure ``comparison_by_cost``; with ``task.save_runs`` the runs themselves, as a table that ``runs`` can name.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        The number of runs ``counted`` and ``left_out``, the number of ``groups``, and the ``mean`` of the best one.

    Raises:
        UsageError: no runs, none with the metric, or runs that cannot be told apart.
    """
    task = config.task
    assert isinstance(task, CompareConfig) and task.runs is not None
    runs = find_runs([task.runs] if isinstance(task.runs, str) else task.runs)
    comparison = compare(
        runs,
        task.metric,
        largest_is_best=task.mode == "max",
        baseline=[Path(one) for one in task.baselines()],
        cost_metric=task.cost_metric,
        reference_metric=task.reference_metric,
        group_by=task.group_by,
        ignore=task.ignore or (),
        confidence=task.confidence,
    )
    if run.writes:
        _write(comparison, task, run.path)
        if task.save_runs is not None:
            _save(runs, Path(task.save_runs))
        _print(comparison, task, run.path)
    return {
        "groups": len(comparison.groups),
        "counted": len(runs) - len(comparison.left_out),
        "left_out": len(comparison.left_out),
        "metric": task.metric,
        "mean": comparison.groups[0].mean,
        "best": label(comparison, comparison.groups[0]),
    }


def _save(runs: Sequence[Run], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(runs, path)
    except OSError as reason:
        raise UsageError(f"cannot write task.save_runs={path}: {reason.strerror or reason}") from reason


def label(comparison: Comparison, group: Group) -> str:
    """Return a group's options on one line, by their last names, without those that do not apply to it."""
    named = zip(comparison.options, group.options, strict=True)
    told = [f"{name.rpartition('.')[2]}={_shown(value)}" for name, value in named if value != ABSENT]
    return " ".join(told) or ("the others" if comparison.options else "all runs")


def rows(comparison: Comparison, task: CompareConfig) -> tuple[list[str], list[list[str]]]:
    """Return the table as strings: headings, and a row for each group."""
    has_differences = task.baseline is not None or task.reference_metric is not None
    partner = task.reference_metric or ("baseline at equal cost" if task.cost_metric is not None else None)
    heads = [name.rpartition(".")[2] for name in comparison.options] or ["runs"]
    heads += ["n", task.metric, "±"]
    if task.cost_metric is not None:
        heads.append(task.cost_metric)
    if partner is not None:
        heads.append(partner)
    # How many pairs there are says nothing where each run has a partner.
    has_pairs = any(one.difference and one.difference.pairs < len(one.values) for one in comparison.groups)
    if has_differences:
        heads += ["difference", f"{task.confidence:.0%} interval", *(["pairs"] if has_pairs else [])]
    body = []
    for index, group in enumerate(comparison.groups):
        row = [
            *map(_shown, group.options or ("all",)),
            str(len(group.values)),
            *_number(group.mean, group.deviation),
        ]
        if group.cost is not None:
            row.append(f"{group.cost:.4g}")
        if partner is not None:
            others = list(group.others.values())
            row.append(f"{sum(others) / len(others):.4f}" if others else "–")
        if has_differences:
            row += _difference(group, is_baseline=index in comparison.baseline)[: 3 if has_pairs else 2]
        body.append(row)
    return heads, body


def _shown(option: str) -> str:
    """Return an option's value, with long numbers (drawn by a search) in four digits."""
    if len(option) <= 8:
        return option
    try:
        return f"{float(option):.4g}"
    except ValueError:
        return option


def _number(mean: float, deviation: float | None) -> tuple[str, str]:
    return f"{mean:.4f}", "–" if deviation is None else f"{deviation:.4f}"


def _difference(group: Group, *, is_baseline: bool) -> list[str]:
    found = group.difference
    if found is None:
        return ["baseline" if is_baseline else "–", "–", "–"]
    interval = "–" if found.low is None else f"{found.low:+.4f} … {found.high:+.4f}"
    return [f"{found.mean:+.4f}", interval, str(found.pairs)]


def _notes(comparison: Comparison, task: CompareConfig) -> list[str]:
    """Return the notes under the table: options that change together, and runs that are not counted."""
    notes = []
    if task.reference_metric is not None:
        notes.append(f"difference: {task.metric} − {task.reference_metric} of the same run")
    elif comparison.baseline:
        of = [label(comparison, comparison.groups[one]) for one in comparison.baseline]
        if task.cost_metric is None:
            notes.append(f"difference: from the run of {of[0]} with the same seed")
        else:
            notes.append(
                f"baseline at equal cost: the curve through {', '.join(of)} at the same {task.cost_metric}, "
                "seed by seed; – outside the curve"
            )
    for name, others in comparison.together.items():
        shown = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        notes.append(f"{name} changes together with {shown}")
    notes += [f"not counted: {run.folder}, {why}" for run, why in comparison.left_out]
    return notes


def _print(comparison: Comparison, task: CompareConfig, folder: Path) -> None:
    heads, body = rows(comparison, task)
    title = f"{task.metric}, mean and std over seeds, best first"
    table = Table(title=title, title_justify="left")
    options = len(comparison.options) or 1
    for place, head in enumerate(heads):
        if place < options:
            table.add_column(head, overflow="fold", min_width=4)
        else:
            table.add_column(head.replace("/", "/\n", 1), justify="right")
    for row in body:
        table.add_row(*row)
    console = standard_output()
    print_table(table, console)
    console.print(f"Written to {folder}", soft_wrap=True, highlight=False)
    for note in _notes(comparison, task):
        console.print(note, soft_wrap=True, highlight=False)


def _write(comparison: Comparison, task: CompareConfig, folder: Path) -> None:
    heads, body = rows(comparison, task)
    numeric = len(heads) - (len(comparison.options) or 1)
    align = ["left"] * (len(heads) - numeric) + ["right"] * numeric
    notes = "".join(f"\n- {note}" for note in _notes(comparison, task))
    markdown = tabulate(body, heads, tablefmt="github", disable_numparse=True, colalign=align)
    (folder / f"{NAME}.md").write_text(
        f"{markdown}\n{notes}\n" if notes else f"{markdown}\n", encoding="utf-8"
    )
    latex = tabulate(body, heads, tablefmt="latex_booktabs", disable_numparse=True, colalign=align)
    (folder / f"{NAME}.tex").write_text(latex + "\n", encoding="utf-8")
    _write_csv(comparison, task, folder / f"{NAME}.csv")
    labels = [label(comparison, group) for group in comparison.groups]
    draw(comparison, task, labels, folder / NAME)
    if task.cost_metric is not None:
        draw_by_cost(comparison, task, labels, folder / f"{NAME}_by_cost")


def _write_csv(comparison: Comparison, task: CompareConfig, path: Path) -> None:
    heads = [
        *comparison.options,
        "n",
        "mean",
        "deviation",
        "cost",
        "difference",
        "error",
        "low",
        "high",
        "pairs",
        "seeds",
    ]
    body: list[Sequence[Any]] = []
    for group in comparison.groups:
        found = group.difference
        differences = (
            ("", "", "", "", "")
            if found is None
            else (found.mean, found.error, found.low, found.high, found.pairs)
        )
        seeds = " ".join(map(str, group.values))
        body.append(
            [*group.options, len(group.values), group.mean, group.deviation, group.cost, *differences, seeds]
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heads, *body])
