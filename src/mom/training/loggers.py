"""The loggers of a run, pointed at its directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mom.config import NodeConfig


def build_loggers(
    nodes: Iterable[NodeConfig], directory: Path, *, run: str, phase: str, hyperparameters: Mapping[str, Any]
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
    """
    loggers = []
    for node in nodes:
        target = node.load()
        defaults = _defaults(target, directory, run, phase)
        given = {name: value for name, value in defaults.items() if node.arguments.get(name) is None}
        logger = node.instantiate(**{name: value for name, value in given.items() if node.accepts(name)})
        if not isinstance(logger, CSVLogger):
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


def _defaults(target: Any, directory: Path, run: str, phase: str) -> dict[str, Any]:
    if not isinstance(target, type):
        return {}
    if issubclass(target, CSVLogger | TensorBoardLogger):
        return {"save_dir": str(directory)}
    if issubclass(target, WandbLogger):
        name = f"{run}-{phase}"
        return {"save_dir": str(directory), "name": name, "id": name, "group": run, "resume": "allow"}
    return {}
