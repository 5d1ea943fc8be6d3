"""Measure a model without training it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar

from mom.callbacks.window import WindowedStatistics
from mom.config import RunConfig
from mom.runs.directory import RunDirectory
from mom.runs.provenance import provenance
from mom.training.fit import collect_results
from mom.training.loggers import build_loggers, finish_loggers
from mom.training.module import TrainingModule
from mom.training.trainer import build_callbacks, build_trainer


def evaluate_module(
    config: RunConfig,
    module: TrainingModule,
    batches: Any,
    directory: RunDirectory,
    *,
    phase: str,
    logged: bool = True,
) -> dict[str, float]:
    """Validate a module once, with the request's trainer, statistics and loggers.

    Args:
        config: the request.
        module: whose validation is run.
        batches: a data loader, or one for each of several sets.
        directory: where loggers write.
        phase: a name for the loggers.
        logged: whether the loggers are told; false after a training in the same directory, whose curve they
            hold.

    Returns:
        The metrics as :func:`mom.training.fit.fit_module` returns them, but the steps and the throughput.
    """
    loggers = build_loggers(
        config.logger.values() if logged else (),
        directory.path,
        run=Path(config.run_dir).name,
        phase=phase,
        hyperparameters=dataclasses.asdict(config) | {"provenance": provenance()},
    )
    kept = (WindowedStatistics, ProgressBar)
    callbacks: list[Callback] = [
        one for one in build_callbacks(config, phase, bool(loggers)) if isinstance(one, kept)
    ]
    trainer = build_trainer(config, directory.path, config.trainer.max_steps, callbacks, loggers)
    exit_code = 1
    try:
        trainer.validate(module, dataloaders=batches, verbose=False)
        exit_code = 0
    finally:
        finish_loggers(loggers, exit_code)
    results = collect_results(trainer, module, callbacks)
    del results["steps"]
    return results


def predict(config: RunConfig, module: TrainingModule, batches: Any, directory: RunDirectory) -> list[float]:
    """Every prediction of a module for the rows of a data loader, in order."""
    bars = [one for one in build_callbacks(config, "predict", False) if isinstance(one, ProgressBar)]
    trainer = build_trainer(config, directory.path, config.trainer.max_steps, [*bars], [])
    found = trainer.predict(module, dataloaders=batches) or []
    return [float(value) for batch in found for value in batch]
