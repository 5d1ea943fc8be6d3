"""The loggers of a run, pointed at its directory."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mom.config import NodeConfig
from mom.runs.directory import process_rank
from mom.runs.files import atomic_file

RUN_ID = "wandb_run_id"
"""File in a phase's folder with the id of its wandb run, which a resumed phase goes on with."""


def build_loggers(
    nodes: Iterable[NodeConfig],
    directory: Path,
    *,
    run: str,
    phase: str,
    hyperparameters: Mapping[str, Any],
    steps_before: int = 0,
) -> list[Logger]:
    """Build the configured loggers for one phase of a run.

    What the configuration leaves open is filled in: files go to ``directory``, and wandb gets one run per
    phase with an id of our own, kept in the directory (so that a resumed run goes on as the same one),
    grouped by run.

    Args:
        nodes: the ``logger`` group.
        directory: where the phase writes.
        run: the run's name.
        phase: the phase's name.
        hyperparameters: the resolved configuration, given to every logger but the CSV one (the run directory
            holds it as ``config.yaml``).
        steps_before: optimizer steps behind the checkpoint that is resumed; a ``metrics.csv`` in the
            directory is continued from there.
    """
    loggers = []
    for node in nodes:
        target = node.load()
        defaults = _defaults(target, directory, run, phase, is_resumed=steps_before > 0)
        given = {name: value for name, value in defaults.items() if node.arguments.get(name) is None}
        logger = node.instantiate(**{name: value for name, value in given.items() if node.accepts(name)})
        if isinstance(logger, CSVLogger):
            _continue_curve(logger, steps_before)
        else:
            logger.log_hyperparams(dict(hyperparameters))
        loggers.append(logger)
    return loggers


def finish_loggers(loggers: Iterable[Logger], exit_code: int) -> None:
    """Close what outlives a Trainer: a wandb run ends with the phase and with its exit code."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            if wandb.run is not None:
                wandb.finish(exit_code=exit_code)


@rank_zero_only
def _continue_curve(logger: CSVLogger, steps_before: int) -> None:
    """Go on after the rows of the first ``steps_before`` steps."""
    logger._experiment = writer = _CurveWriter(logger.log_dir)
    path = Path(writer.metrics_file_path)
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    # Lightning counts the step under way: the row of the first step says 0. A process that was killed may
    # have left half a line, of a step after the checkpoint.
    kept = [row for row in rows if row["step"] and row["step"].isdigit() and int(row["step"]) < steps_before]
    names = sorted({name for row in kept for name, value in row.items() if value})
    writer.metrics_keys = names
    if kept:
        writer.replace([{name: row[name] for name in names} for row in kept])
    else:
        path.unlink(missing_ok=True)


class _CurveWriter(_ExperimentWriter):
    """Lightning's writer of ``metrics.csv``, but the file is never gone or half-written, and no row comes twice.

    Lightning deletes the file of an earlier start, and empties it to write it anew whenever a metric is first
    logged; a process killed in between would lose the curve. A row just like the one before is one that was
    logged early, for a checkpoint (:class:`~mom.callbacks.LastCheckpoint`).
    """

    _before = ""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Take a row, unless it is the one before again."""
        super().log_metrics(metrics_dict, step)
        row = repr(self.metrics[-1])
        if row == self._before:
            self.metrics.pop()
        self._before = row

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the header and these rows in the place of what is there."""
        path = Path(self.metrics_file_path)
        with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            self.replace(list(csv.DictReader(file)))

    def _check_log_dir_exists(self) -> None:
        """What stands there is dealt with by whoever continues the curve."""


def _run_id(directory: Path, name: str, is_resumed: bool) -> str:
    """The id of a phase's wandb run: the one it began with, else a new one that no other run has.

    Started by the agent of a wandb sweep it is the agent's, which wandb takes whatever it is given.
    """
    path = directory / RUN_ID
    if is_resumed and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    identity = f"{name}-{secrets.token_hex(4)}"
    if "WANDB_SWEEP_ID" in os.environ:
        identity = os.environ.get("WANDB_RUN_ID", identity)
    if process_rank() == 0:
        path.write_text(identity + "\n", encoding="utf-8")
    return identity


def _defaults(target: Any, directory: Path, run: str, phase: str, *, is_resumed: bool) -> dict[str, Any]:
    if not isinstance(target, type):
        return {}
    if issubclass(target, CSVLogger | TensorBoardLogger):
        return {"save_dir": str(directory)}
    if issubclass(target, WandbLogger):
        name = f"{run}-{phase}"
        identity = _run_id(directory, name, is_resumed)
        return {"save_dir": str(directory), "name": name, "id": identity, "group": run, "resume": "allow"}
    return {}
