"""Task ``runs``: list runs with their status, step, validation loss, and age."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mom.config import RunConfig, RunsConfig
from mom.console import MISSING, build_table, print_line, print_table
from mom.errors import UsageError, as_written
from mom.runs.curves import METRICS, Curve, read_curves
from mom.runs.directory import CONFIG, read_request, read_status, read_summary
from mom.runs.owner import LOCK

DEFAULT = ("outputs", "multirun")
LOSS = "val/loss"
_BLOCKS = "▁▂▃▄▅▆▇█"
_PHASES = ("", "plain", "baseline")
"""Folders of a run that may have curves; the last one written to is that of the phase under way."""
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclasses.dataclass(frozen=True)
class Row:
    """A run in the table.

    Attributes:
        name: the run directory, below the folder that was searched.
        title: the option ``name`` of the run, or that of its arm; None if it has neither.
        task: its task; None if its request cannot be read.
        status: ``running``, ``succeeded``, ``failed``, ``interrupted``, or ``unreadable``.
        step: last optimizer step that was logged; None before the first.
        steps: optimizer steps of the phase; None if it does not train.
        phase: name of an earlier phase that is under way; empty in the main phase.
        losses: validation losses in order.
        age: seconds since the status changed; None if it has none.
        tags: its tags.
    """

    name: str
    title: str | None
    task: str | None
    status: str
    step: int | None = None
    steps: int | None = None
    phase: str = ""
    losses: Sequence[float] = ()
    age: float | None = None
    tags: Sequence[str] = ()


def run(config: RunConfig) -> None:
    """Print the table of the runs in the request's folders.

    Raises:
        UsageError: there are no runs.
    """
    task = config.task
    assert isinstance(task, RunsConfig)
    given = [task.runs] if isinstance(task.runs, str) else task.runs
    found = list(find(given or [name for name in DEFAULT if Path(name).is_dir()]))
    if not found:
        places = as_written(task.runs) if given else f"{DEFAULT[0]} and {DEFAULT[1]} of this folder"
        raise UsageError(f"runs must be folders with runs, got {places}, without any")
    rows = sorted((row for row in found if _is_wanted(row, task)), key=lambda row: _key(row, task.sort))
    if task.reverse:
        rows.reverse()
    shown = rows[: task.limit]
    title = f"{len(rows)} of {len(found)} runs" if len(rows) < len(found) else f"{len(rows)} runs"
    place = _common_folder([row.name for row in shown])
    if place:
        title += f" in {place}"
        shown = [dataclasses.replace(row, name=row.name.removeprefix(f"{place}/")) for row in shown]
    headings = ["run", "task", "status", "", "loss", "step", "age"]
    table = build_table(headings, map(_cells, shown), title=title, texts=4, box=None, pad_edge=False)
    print_table(table)
    if len(shown) < len(rows):
        print_line(f"{len(rows) - len(shown)} more; task.limit=null lists all")


def find(folders: Sequence[str]) -> Iterator[Row]:
    """Yield the runs in these folders and below them.

    Raises:
        UsageError: one of them does not exist.
    """
    for given in folders:
        root = Path(given)
        if not root.is_dir():
            raise UsageError(f"cannot read runs from {as_written(given)}: no such directory")
        for path in sorted(root.rglob(CONFIG)):
            folder = path.parent
            name = (Path(given) if folder == root else folder).as_posix()
            try:
                request = read_request(folder)
            except UsageError:
                yield Row(name, None, None, "unreadable")
                continue
            if request is not None:
                yield _row(name, folder, request)


def sparkline(values: Sequence[float], width: int = 8) -> str:
    """Return a curve of at most ``width`` blocks, each the last value of its part; empty without two finite values."""
    if len(values) > width:
        values = [values[math.ceil((part + 1) * len(values) / width) - 1] for part in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / ((high - low) or 1)
    return "".join(_BLOCKS[round((value - low) * scale)] if math.isfinite(value) else "×" for value in values)


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder of several runs; empty for a single one, or if they have none in common."""
    absolute = {Path(name).is_absolute() for name in names}
    if len(names) < 2 or len(absolute) > 1:
        return ""
    return os.path.commonpath([os.path.dirname(name) for name in names]).replace(os.sep, "/")


def _row(name: str, folder: Path, request: Mapping[str, Any]) -> Row:
    task = request["task"] if isinstance(request["task"], Mapping) else {"name": request["task"]}
    status = _status(folder)
    phase, curves = _curves(folder)
    losses = curves[LOSS].values.tolist() if LOSS in curves else []
    logged = max((int(curve.steps[-1]) for curve in curves.values()), default=None)
    summary = read_summary(folder)
    ended = isinstance(summary.get("steps"), int | float) and status.get("state") == "succeeded"
    final = summary.get(LOSS)
    if ended and isinstance(final, int | float) and (not losses or losses[-1] != final):
        losses = [*losses, float(final)]
    wanted = (
        _option(request, "trainer", "max_steps") if phase == "" else _option(request, "task", "plain_steps")
    )
    step = int(summary["steps"]) if ended else logged
    tags = request.get("tags")
    return Row(
        name,
        request.get("name") or request.get("arm"),
        str(task.get("name")),
        status.get("state", "no status"),
        step,
        wanted if step is not None and isinstance(wanted, int) else None,
        phase,
        losses,
        _age(status.get("time")),
        [str(tag) for tag in tags] if isinstance(tags, list) else [],
    )


def _status(folder: Path) -> dict[str, Any]:
    """Return the status, where a run that nobody owns is not running."""
    try:
        status = read_status(folder)
    except OSError:  # a folder that this user cannot write to, so that the owner cannot be asked for
        return {}
    if status.get("state") == "running" and not (folder / LOCK).exists():
        return {**status, "state": "interrupted"}
    return status


def _curves(folder: Path) -> tuple[str, dict[str, Curve]]:
    """Return the phase under way and its curves, none if they cannot be read."""
    files = [(folder / phase / METRICS, phase) for phase in _PHASES]
    present = [(path.stat().st_mtime, phase) for path, phase in files if path.is_file()]
    if not present:
        return "", {}
    phase = "" if any(name == "" for _, name in present) else max(present)[1]
    try:
        return phase, read_curves(folder / phase)
    except UsageError:  # a damaged file of one run does not hide the others
        return phase, {}


def _is_wanted(row: Row, task: RunsConfig) -> bool:
    pattern = None if task.match is None else task.match if "*" in task.match else f"*{task.match}*"
    names = (row.name, row.title or "")
    return (
        (pattern is None or any(fnmatch.fnmatch(name, pattern) for name in names))
        and task.status in (None, row.status)
        and task.of_task in (None, row.task)
        and (task.tag is None or task.tag in row.tags)
    )


def _key(row: Row, column: str) -> tuple[bool, Any]:
    """Return the sort key of a row; a missing value comes last."""
    value = (row.losses[-1] if row.losses else None) if column == "loss" else getattr(row, column)
    is_missing = value is None or value != value  # NaN
    return is_missing, 0 if is_missing else value


def _cells(row: Row) -> list[str | None]:
    step = None if row.step is None else f"{row.step:,}" + (f"/{row.steps:,}" if row.steps else "")
    return [
        row.name if row.title is None else f"{row.name} ({row.title})",
        row.task or MISSING,
        row.status,
        sparkline(row.losses),
        f"{row.losses[-1]:.3f}" if row.losses else None,
        f"{row.phase} {step}" if row.phase and step else step,
        _duration(row.age),
    ]


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    name, unit = next(((name, unit) for name, unit in _UNITS if seconds >= unit), _UNITS[-1])
    return f"{seconds / unit:.0f} {name}"


def _age(time: object) -> float | None:
    try:
        then = datetime.datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return max(0.0, (datetime.datetime.now().astimezone() - then.astimezone()).total_seconds())


def _option(request: Mapping[str, Any], group: str, name: str) -> Any:
    options = request.get(group)
    return options.get(name) if isinstance(options, Mapping) else None
