"""The loggers of a run, pointed at its directory."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mom.config import NodeConfig


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
    phase with an id of our own (so that a resumed run goes on as the same one), grouped by run.

    Args:
        nodes: the ``logger`` group.
        directory: where the phase writes.
        run: the run's name.
        phase: the phase's name.
        hyperparameters: the resolved configuration, given to every logger but the CSV one (the run directory
            holds it as ``config.yaml``).
        steps_before: optimiser steps behind the checkpoint that is resumed; a ``metrics.csv`` in the
            directory is continued from there.
    """
    loggers = []
    for node in nodes:
        target = node.load()
        defaults = _defaults(target, directory, run, phase)
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
    """Put back the rows of the first ``steps_before`` steps, which Lightning's logger deletes."""
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    # Lightning counts the step under way: the row of the first step says 0.
    kept = [row for row in rows if int(row["step"]) < steps_before]
    logger.experiment.metrics.extend(kept)
    logger.save()


def _defaults(target: Any, directory: Path, run: str, phase: str) -> dict[str, Any]:
    if not isinstance(target, type):
        return {}
    if issubclass(target, CSVLogger | TensorBoardLogger):
        return {"save_dir": str(directory)}
    if issubclass(target, WandbLogger):
        name = f"{run}-{phase}"
        return {"save_dir": str(directory), "name": name, "id": name, "group": run, "resume": "allow"}
    return {}
