"""Loggers that write to the run directory."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import secrets
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mom.config import NodeConfig, RunConfig
from mom.console import announce
from mom.errors import UsageError
from mom.runs.directory import process_rank
from mom.runs.files import atomic_file
from mom.runs.provenance import provenance

RUN_ID = "wandb_run_id"
"""File in a phase's directory with the id of its wandb run, which a resumed phase continues."""


@contextmanager
def open_loggers(
    config: RunConfig,
    directory: Path,
    *,
    phase: str,
    data: object = None,
    steps_before: int = 0,
    enabled: bool = True,
) -> Iterator[list[Logger]]:
    """Build the request's loggers for one phase (:func:`build_loggers`), and close them with its exit code.

    Args:
        config: the request.
        directory: where the phase writes.
        phase: the phase's name.
        data: its data module, whose fingerprint is logged.
        steps_before: optimizer steps before the checkpoint that is resumed.
        enabled: whether to log at all.
    """
    loggers = build_loggers(
        config.logger.values() if enabled else (),
        directory,
        run=Path(config.run_dir).name,
        phase=phase,
        about={"tags": config.tags or None, "notes": config.notes},
        hyperparameters=dataclasses.asdict(config) | {"provenance": provenance(data)},
        steps_before=steps_before,
    )
    exit_code = 1
    try:
        yield loggers
        exit_code = 0
    finally:
        finish_loggers(loggers, exit_code)


def build_loggers(
    nodes: Iterable[NodeConfig],
    directory: Path,
    *,
    run: str,
    phase: str,
    hyperparameters: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    steps_before: int = 0,
) -> list[Logger]:
    """Build the configured loggers for one phase of a run.

    Unset options get defaults: files go to ``directory``, and wandb has one run per phase, grouped by run, with an id
    that is stored in the directory so that a resumed phase continues the same run.

    Args:
        nodes: the ``logger`` group.
        directory: where the phase writes.
        run: the run's name.
        phase: the phase's name.
        hyperparameters: the resolved configuration, for all loggers but CSV (the run directory has ``config.yaml``).
        about: ``tags`` and ``notes`` of the run, for Weights & Biases.
        steps_before: optimizer steps before the checkpoint that is resumed; an existing ``metrics.csv`` is
            continued from there.
    """
    loggers = []
    for node in nodes:
        target = node.load()
        is_wandb = isinstance(target, type) and issubclass(target, WandbLogger)
        defaults = _defaults(target, directory, run, phase, is_resumed=steps_before > 0) | {
            name: value for name, value in (about or {}).items() if value is not None and is_wandb
        }
        given = {name: value for name, value in defaults.items() if node.arguments.get(name) is None}
        if is_wandb:
            os.environ.setdefault("WANDB_SILENT", "true")  # one line at the end says all: see finish_loggers
        logger = node.instantiate(**{name: value for name, value in given.items() if node.accepts(name)})
        if is_wandb:
            # Lightning passes an option that wandb has given up, and warns about.
            getattr(logger, "_wandb_init", {}).pop("anonymous", None)
        _check_inside(node, logger)
        if isinstance(logger, CSVLogger):
            _continue_csv(logger, steps_before)
        else:
            logger.log_hyperparams(dict(hyperparameters))
        loggers.append(logger)
    return loggers


def _check_inside(node: NodeConfig, logger: Logger) -> None:
    """Reject a name or version with which a logger would write outside of its directory."""
    if isinstance(logger, CSVLogger | TensorBoardLogger) and logger.save_dir is not None:
        root, folder = Path(logger.save_dir).resolve(), Path(logger.log_dir).resolve()
        if not folder.is_relative_to(root):
            raise UsageError(f"{node.option}.name and .version must be folders within {root}, got {folder}")


def finish_loggers(loggers: Iterable[Logger], exit_code: int) -> None:
    """End the phase's wandb run with its exit code; the other loggers are closed by the Trainer."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            if wandb.run is not None:
                where = _where(wandb.run)
                wandb.finish(exit_code=exit_code)
                announce(where)


def _where(run: Any) -> str:
    """Return where the run of Weights & Biases is: its folder and how to upload it, or its page."""
    if not run.offline:
        return f"Weights & Biases: {run.url}"
    folder = Path(run.settings.sync_dir)
    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    return f"Weights & Biases: upload with wandb sync {shlex.quote(str(folder))}"


@rank_zero_only
def _continue_csv(logger: CSVLogger, steps_before: int) -> None:
    """Continue ``metrics.csv`` after the rows of the first ``steps_before`` steps."""
    logger._experiment = writer = _MetricsWriter(logger.log_dir)
    path = Path(writer.metrics_file_path)
    rows = _read_rows(path) if path.is_file() else []
    # Lightning logs a step before counting it, so the first step has number 0. A killed process may have left half a
    # line, from a step after the checkpoint.
    kept = [row for row in rows if row["step"].isdecimal() and int(row["step"]) < steps_before]
    names = sorted({name for row in kept for name, value in row.items() if value})
    writer.metrics_keys = names
    if kept:
        writer.replace([{name: row[name] for name in names} for row in kept])
    else:
        path.unlink(missing_ok=True)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read ``metrics.csv``; a missing cell is empty.

    Raises:
        UsageError: it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, restval="")
            rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot continue {path}: {error}; remove it to start a new one") from error
    for number, row in enumerate(rows, start=1):
        if None in row or "step" not in row:
            raise UsageError(
                f"cannot continue {path}: row {number} does not have its columns; remove it to start a new one"
            )
    return rows


class _MetricsWriter(_ExperimentWriter):
    """Lightning's writer of ``metrics.csv``, but without lost or repeated rows.

    Lightning deletes an existing file, and truncates it to add a column when a metric is first logged; a process killed
    then would lose all rows. Rows repeat because :class:`~mom.callbacks.LastCheckpoint` logs early.
    """

    _previous_row = ""
    _complete: tuple[int, list[str]] = (0, [])

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Add a row unless it repeats the previous one."""
        super().log_metrics(metrics_dict, step)
        row = repr(self.metrics[-1])
        if row == self._previous_row:
            self.metrics.pop()
        self._previous_row = row

    def save(self) -> None:
        """Append the waiting rows: all of them or, on a full disk, none, because training's end appends them again."""
        self._mark()
        try:
            super().save()
        except OSError:
            size, self.metrics_keys = self._complete
            path = Path(self.metrics_file_path)
            if size == 0:
                path.unlink(missing_ok=True)
            elif path.is_file():
                os.truncate(path, size)
            raise

    def _mark(self) -> None:
        """Note the size of the complete file, and its columns."""
        path = Path(self.metrics_file_path)
        self._complete = (path.stat().st_size, [*self.metrics_keys]) if path.is_file() else (0, [])

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file with a header and these rows."""
        path = Path(self.metrics_file_path)
        with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            self.replace(list(csv.DictReader(file)))
        self._mark()

    def _check_log_dir_exists(self) -> None:
        """Skip Lightning's deletion; :func:`_continue_csv` decides which rows stay."""


def _run_id(directory: Path, name: str, is_resumed: bool) -> str:
    """Return the id of a phase's wandb run: a resumed phase keeps its id, others get a new one.

    Under a wandb sweep agent it is the agent's id, because wandb ignores any other.
    """
    path = directory / RUN_ID
    if is_resumed and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = f"{name}-{secrets.token_hex(4)}"
    if "WANDB_SWEEP_ID" in os.environ:
        run_id = os.environ.get("WANDB_RUN_ID", run_id)
    if process_rank() == 0:
        path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def _defaults(target: Any, directory: Path, run: str, phase: str, *, is_resumed: bool) -> dict[str, Any]:
    """Return default arguments for a logger class."""
    if not isinstance(target, type):
        return {}
    if issubclass(target, CSVLogger | TensorBoardLogger):
        return {"save_dir": str(directory)}
    if issubclass(target, WandbLogger):
        name = f"{run}-{phase}"
        run_id = _run_id(directory, name, is_resumed)
        return {"save_dir": str(directory), "name": name, "id": run_id, "group": run, "resume": "allow"}
    return {}
