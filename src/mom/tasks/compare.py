"""Compare runs in one table and one figure, from run directories or tables of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mom.config import TASKS, CompareConfig, RunConfig
from mom.console import MISSING, build_table, print_line, print_table
from mom.errors import UsageError
from mom.runs.comparison import ABSENT, Comparison, Group, compare
from mom.runs.directory import RunDirectory
from mom.runs.files import format_csv, write_text_atomic
from mom.runs.records import Run, find_runs, write_table

NAME = "comparison"

Cell = str | None


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Print a table of the groups of runs, best first, and write it with a figure.

    Writes ``comparison.md``, ``.csv`` (all digits), ``.tex``, ``.png``, and ``.svg``; the figure ``comparison_curves``
    if the runs have curves; with ``task.cost_metric`` also ``comparison_by_cost``; with ``task.save_runs`` also a table
    of the runs that ``runs`` can read.

    Returns:
        The numbers of runs ``counted`` and ``left_out`` and of ``groups``, and the ``mean`` of the ``best`` group.

    Raises:
        UsageError: there are no runs, none has the metric, or two runs differ in no option.
    """
    task = config.task
    assert isinstance(task, CompareConfig) and task.runs is not None
    found = find_runs([task.runs] if isinstance(task.runs, str) else task.runs)
    runs, looking = _trained([other for other in found if other.folder.resolve() != run.path.resolve()])
    comparison = compare(
        runs,
        task.metric,
        largest_is_best=task.mode == "max",
        baseline=[Path(name) for name in task.baselines()],
        cost_metric=task.cost_metric,
        reference_metric=task.reference_metric,
        group_by=task.group_by,
        ignore=task.ignore or (),
        confidence=task.confidence,
    )
    if run.writes:
        if task.save_runs is not None:
            _save(runs, Path(task.save_runs))
        _report(comparison, task, run.path, looking)
    return {
        "groups": len(comparison.groups),
        "counted": len(runs) - len(comparison.left_out),
        "left_out": len(comparison.left_out) + len(looking),
        "metric": task.metric,
        "mean": comparison.groups[0].mean,
        "best": _label(comparison, comparison.groups[0]),
    }


def _trained(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Return the runs to compare and those left out: if any run trained, those that only looked at trained weights.

    The losses of the latter are of other runs' weights, often on other text.
    """
    trained = [run for run in runs if _trains(str(run.options.get("task.name")))]
    if not trained:
        return list(runs), []
    return trained, [run for run in runs if run not in trained]


def _trains(task: str) -> bool:
    """Return whether a task trains, as tasks that resume do; a task without a record of its name counts as such."""
    return task not in TASKS or TASKS[task].resumes


def _save(runs: Sequence[Run], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(runs, path)
    except OSError as reason:
        raise UsageError(f"cannot write task.save_runs={path}: {reason.strerror or reason}") from reason


def _label(comparison: Comparison, group: Group) -> str:
    """Return a group's options on one line, without their prefixes and without options that do not apply to it."""
    named = zip(comparison.options, group.options, strict=True)
    shown = [f"{name.rpartition('.')[2]}={_shown(value)}" for name, value in named if value != ABSENT]
    return " ".join(shown) or ("the others" if comparison.options else "all runs")


def _table(comparison: Comparison, task: CompareConfig) -> tuple[list[str], list[list[Cell]]]:
    """Return the headings, and a row of cells for each group; None is shown as a dash."""
    groups = comparison.groups
    differences = [group.difference for group in groups]
    columns: list[tuple[str, list[Cell]]] = [
        (name.rpartition(".")[2], [_shown(group.options[index]) for group in groups])
        for index, name in enumerate(comparison.options)
    ]
    columns = columns or [("runs", ["all"])]
    columns += [
        ("n", [str(len(group.values)) for group in groups]),
        (task.metric, [_rounded(group.mean) for group in groups]),
        ("±", [_rounded(group.deviation) for group in groups]),
    ]
    if task.cost_metric is not None:
        columns.append((task.cost_metric, [f"{group.cost:.4g}" for group in groups]))
    if task.reference_metric is not None or task.cost_metric is not None:
        partner = task.reference_metric or "baseline at equal cost"
        columns.append((partner, [_rounded(group.partner) for group in groups]))
    if task.reference_metric is not None or task.baseline is not None:
        means = [_rounded(paired.mean if paired else None, "+") for paired in differences]
        for index in comparison.baseline:
            means[index] = "baseline"
        intervals = [
            # A bound keeps its sign where it rounds to 0, since the sign says whether the interval excludes 0.
            None if paired is None or paired.low is None else f"{paired.low:+.4f} … {paired.high:+.4f}"
            for paired in differences
        ]
        columns += [("difference", means), (f"{task.confidence:.0%} interval", intervals)]
        # If every run has a partner, the number of pairs is n.
        if any(group.difference and group.difference.pairs < len(group.values) for group in groups):
            columns.append(("pairs", [str(paired.pairs) if paired else None for paired in differences]))
    return [name for name, _ in columns], [
        list(row) for row in zip(*(cells for _, cells in columns), strict=True)
    ]


def _shown(option: str) -> str:
    """Return an option's value, rounding long numbers (sampled by a search) to four digits."""
    if len(option) <= 8:
        return option
    try:
        return f"{float(option):.4g}"
    except ValueError:
        return option


def _rounded(number: float | None, sign: str = "") -> Cell:
    return None if number is None else f"{number:{sign}.4f}"


def _notes(comparison: Comparison, task: CompareConfig, looking: Sequence[Run]) -> list[str]:
    """Return the notes under the table: options that change together, and runs that are not counted."""
    notes = []
    if task.reference_metric is not None:
        notes.append(f"difference: {task.metric} − {task.reference_metric} of the same run")
    elif comparison.baseline:
        baselines = [_label(comparison, comparison.groups[index]) for index in comparison.baseline]
        if task.cost_metric is None:
            notes.append(f"difference: from the run of {baselines[0]} with the same seed")
        else:
            notes.append(
                f"baseline at equal cost: the curve through {', '.join(baselines)} at the same {task.cost_metric}, "
                "seed by seed; – outside the curve"
            )
    for name, others in comparison.together.items():
        shown = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        notes.append(f"{name} changes together with {shown}")
    notes += [f"not counted: {run.folder}, {why}" for run, why in comparison.left_out]
    if looking:
        tasks = ", ".join(sorted({str(run.options["task.name"]) for run in looking}))
        number = "1 run" if len(looking) == 1 else f"{len(looking)} runs"
        notes.append(f"not counted: {number} of tasks that train nothing ({tasks})")
    return notes


def _report(comparison: Comparison, task: CompareConfig, folder: Path, looking: Sequence[Run]) -> None:
    """Write the comparison in every format, and print its table and notes."""
    from mom.plots.comparison import write_figures  # local because Matplotlib takes a second to import

    headings, rows = _table(comparison, task)
    notes = _notes(comparison, task, looking)
    texts = len(comparison.options) or 1
    align = ["left"] * texts + ["right"] * (len(headings) - texts)
    below = "".join(f"\n- {note}" for note in notes) + "\n" if notes else ""
    for ending, form, after in (("md", "github", below), ("tex", "latex_booktabs", "")):
        text = tabulate(rows, headings, form, disable_numparse=True, colalign=align, missingval=MISSING)
        (folder / f"{NAME}.{ending}").write_text(f"{text}\n{after}", encoding="utf-8")
    _write_csv(comparison, folder / f"{NAME}.csv")
    write_figures(comparison, task, [_label(comparison, group) for group in comparison.groups], folder / NAME)

    table = build_table(
        [*headings[:texts], *(heading.replace("/", "/\n", 1) for heading in headings[texts:])],
        rows,
        title=f"{task.metric}, mean and std over seeds, best first",
        texts=texts,
    )
    for column in table.columns[:texts]:
        column.min_width = 4
    print_table(table, directory=folder)
    for note in notes:
        print_line(note)


def _write_csv(comparison: Comparison, path: Path) -> None:
    of_difference = ("error", "low", "high", "pairs")
    measured = ["n", "mean", "deviation", "cost", "difference", *of_difference, "seeds"]
    rows = []
    for group in comparison.groups:
        difference = [getattr(group.difference, name, None) for name in ("mean", *of_difference)]
        seeds = " ".join(map(str, group.values))
        values = [len(group.values), group.mean, group.deviation, group.cost, *difference, seeds]
        rows.append(dict(zip((*comparison.options, *measured), (*group.options, *values), strict=True)))
    write_text_atomic(path, format_csv([*comparison.options, *measured], rows))
