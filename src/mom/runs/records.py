"""Read finished runs from run directories or tables of runs, and write such tables."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import glob
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mom.errors import UsageError, as_written, first_line
from mom.model.options import options_of
from mom.runs.directory import CONFIG, read_provenance, read_request, read_status, read_summary
from mom.runs.files import csv_value, format_csv, parse_json, write_text_atomic

STAGE_OPTIONS = (
    "router",
    *(f"model.{name}" for name, declaration in options_of("model").items() if declaration.routed),
    "optimizer.router_lr_multiplier",
    *(
        f"callbacks.{name}"
        for name in (
            "temperature",
            "gumbel_noise",
            "gaussian_noise",
            "prior_strength",
            "top_k",
            "num_rounds",
            "balance_coefficient",
            "router_lr_multiplier",
        )
    ),
)
"""Options and groups that do not affect a plain transformer (``num_stages: 0``)."""

_FORMER_STAGE_OPTIONS = tuple(
    f"callbacks.{name}" for name in ("router_prior_decay", "router_noise", "top_k_growth")
)
"""Such options in records from before schedules replaced them."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, read from its directory or from a row of a table.

    Args:
        folder: the run directory; for a row of a table, the table's path and the run's name in it.
        options: its configuration, from dotted names to values as users write them, without the options in
            :data:`STAGE_OPTIONS` for a plain transformer.
        seed: random seed.
        status: content of ``status.json``.
        summary: content of ``summary.json``.
        origin: the ``commit`` of the code and the ``command`` that started the run, if they are known.
    """

    folder: Path
    options: Mapping[str, str]
    seed: int
    status: Mapping[str, Any]
    summary: Mapping[str, Any]
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return a final metric of a run that succeeded; ``None`` if there is none."""
        number = self.summary.get(metric)
        succeeded = self.status.get("state") == "succeeded"
        return float(number) if succeeded and isinstance(number, int | float) else None

    def why_not(self, metric: str) -> str:
        """Return a few words on why :meth:`value` has no such metric."""
        state = self.status.get("state", "no status")
        error = self.status.get("error")
        message = f": {' '.join(str(error['message']).split())}" if error else ""
        return f"has no {metric}" if state == "succeeded" else f"{state}{message}"


def find_runs(sources: Sequence[str]) -> list[Run]:
    """Read the runs in run directories, in directories below them, or in tables of runs.

    Args:
        sources: run directories, directories that contain some (such as a sweep's), tables of runs (``study.csv``),
            a run or a group of runs in a table (``study.csv/plain/0``, ``study.csv/plain``), or patterns of these
            (``*``; ``**`` for directories).

    Raises:
        UsageError: if one of them contains no run.
    """
    found: dict[Path, Run] = {}
    for source in sources:
        table = next((path for path in (Path(source), *Path(source).parents) if path.suffix == ".csv"), None)
        paths = [Path(path) for path in sorted(glob.glob(str(table or source), recursive=True))]
        if table is None:
            paths = [path for path in paths if path.is_dir()]
            runs = [run for path in paths for run in _runs_below(path)]
        else:
            paths = [path for path in paths if path.is_file()]
            inside = Path(source).relative_to(table)
            runs = [run for path in paths for run in read_table(path) if _is_below(run.folder, path / inside)]
        if not runs:
            reason = "there are no runs there" if paths else "no such directory or table"
            raise UsageError(f"cannot read runs from {as_written(source)}: {reason}")
        found |= {run.folder.resolve(): run for run in runs}
    return list(found.values())


def read_table(path: Path) -> list[Run]:
    """Read a table that :func:`write_table` wrote.

    Raises:
        UsageError: if the file is not such a table.
    """
    try:
        stream = io.StringIO(path.read_bytes().decode("utf-8"), newline="")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read runs from {path}: {first_line(error)}") from error
    lines = list(stream)
    if not lines or lines[0].rstrip() != _TITLE:
        raise UsageError(f"runs must name tables written by task.save_runs, got {path}")
    head = [line[2:].rstrip("\r\n") for line in lines[1:] if line.startswith("# ")]
    # All runs share the value in an option's comment line; without a value, the option has a column.
    options = {name: value for name, _, value in (line.partition(": ") for line in head)}
    runs = []
    for number, cells in enumerate(csv.DictReader(lines[1 + len(head) :]), start=1):
        row = {name: csv_value(cell) for name, cell in cells.items() if name and isinstance(cell, str)}
        if None in cells or len(row) < len(cells) or not row.keys() >= {*_OWN}:
            raise UsageError(
                f"cannot read runs from {path}: row {number} does not have the columns of the table"
            )
        own = {name: value or row.get(name, "") for name, value in options.items()}
        runs.append(
            Run(
                path / row["run"],
                {name: value for name, value in own.items() if value},
                _seed(own, f"{path}, row {number}"),
                {"state": row["state"], "error": None, "time": row["time"]},
                {name: _read(cell) for name, cell in row.items() if name not in (*options, *_OWN) and cell},
                {"commit": row["commit"], "command": row["command"]},
            )
        )
    return runs


def write_table(runs: Sequence[Run], path: Path) -> None:
    """Write runs to a CSV file, one per row, below comment lines that list the options.

    Comment lines give the value of an option that all runs share; the other options have columns. An empty cell is
    an option or a number that the run does not have. Runs are named by their paths below their common directory.
    Curves (``metrics.csv``), traces, and checkpoints are not stored.

    Raises:
        OSError: if the file cannot be written.
    """
    root = os.path.commonpath([run.folder.absolute().parent for run in runs])
    options = [name for name in _merged(run.options for run in runs) if name != "run_dir"]
    varying = [name for name in options if len({run.options.get(name) for run in runs}) > 1]
    head = [f"# {name}" if name in varying else f"# {name}: {runs[0].options[name]}" for name in options]
    columns = ["run", *varying, *_OWN[1:], *_merged(run.summary for run in runs)]
    rows: list[dict[str, Any]] = []
    for run in runs:
        state = run.status.get("state", "no status")
        own = {
            "run": run.folder.absolute().relative_to(root).as_posix(),
            "state": state if state == "succeeded" else run.why_not(""),
            "time": run.status.get("time", ""),
        }
        numbers = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in run.summary.items()
        }
        rows.append({**run.options, **numbers, **own, **run.origin})
    write_text_atomic(path, "\n".join([_TITLE, *head, format_csv(columns, rows)]))


def is_within(name: str, *prefixes: str) -> bool:
    """Return whether ``prefixes`` lists an option or one of its groups."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


_TITLE = "# Options of the runs below; an option without a value has a column."
_OWN = ("run", "state", "time", "commit", "command")
"""Columns of a table of runs that are neither options nor final metrics."""


def _is_below(folder: Path, pattern: Path) -> bool:
    """Return whether a path, or a parent of it, matches a pattern, part by part."""
    pairs = zip(folder.parts, pattern.parts, strict=False)
    return len(folder.parts) >= len(pattern.parts) and all(fnmatch.fnmatch(*pair) for pair in pairs)


def _merged(orders: Iterable[Iterable[str]]) -> list[str]:
    """Merge lists of names without duplicates; a new name goes after the name that it follows in its own list."""
    merged: list[str] = []
    for names in orders:
        position = 0
        for name in names:
            if name not in merged:
                merged.insert(position, name)
            position = merged.index(name) + 1
    return merged


def _seed(options: Mapping[str, Any], place: str) -> int:
    """Return the seed among a run's options, 0 if it has none."""
    try:
        return int(options.get("seed") or 0)
    except (TypeError, ValueError):
        raise UsageError(
            f"cannot read runs from {place}: the seed must be an integer, got {as_written(options['seed'])}"
        ) from None


def _read(cell: str) -> Any:
    try:
        return parse_json(cell)
    except ValueError:
        return cell


def _runs_below(folder: Path) -> Iterator[Run]:
    """Yield the run in a directory, or else the runs in directories below it; phases of a run do not count as runs."""
    request = read_request(folder)
    if request is None:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _runs_below(inner)
        return
    options = dict(_dotted(request))
    if options.get("model.num_stages") == "0":
        unused = (*STAGE_OPTIONS, *_FORMER_STAGE_OPTIONS)
        options = {name: value for name, value in options.items() if not is_within(name, *unused)}
    provenance = read_provenance(folder)
    commit = provenance.get("commit") or ""
    if commit and provenance.get("modified"):
        commit += " with changes"
    origin = {"commit": commit, "command": provenance.get("command", "")}
    seed = _seed(request, str(folder / CONFIG))
    yield Run(folder, options, seed, read_status(folder), read_summary(folder), origin)


def _dotted(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", as_written(value)
