"""Validate a model, or predict with it, without training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar

from mom.callbacks.window import WindowedStatistics
from mom.config import RunConfig
from mom.runs.directory import RunDirectory
from mom.training.fit import collect_results
from mom.training.loggers import open_loggers
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
    """Validate a module once, with the request's trainer, statistics, and loggers.

    Args:
        config: the request.
        module: the module to validate.
        batches: a data loader, or one per validation set.
        directory: where the loggers write.
        phase: a name for the loggers.
        logged: whether to use the loggers; false after training in the same directory, to keep the training's metrics.

    Returns:
        The results of :func:`mom.training.fit.collect_results` without ``steps`` and the throughput.
    """
    with open_loggers(config, directory.path, phase=phase, enabled=logged) as loggers:
        callbacks: list[Callback] = [
            callback
            for callback in build_callbacks(config, phase, bool(loggers))
            if isinstance(callback, WindowedStatistics | ProgressBar)
        ]
        trainer = build_trainer(config, directory.path, config.trainer.max_steps, callbacks, loggers)
        trainer.validate(module, dataloaders=batches, verbose=False)
    results = collect_results(trainer, module, callbacks)
    del results["steps"]
    return results


def predict(config: RunConfig, module: TrainingModule, batches: Any, directory: RunDirectory) -> list[float]:
    """Return a module's prediction for each row of a data loader, in order."""
    bars = [bar for bar in build_callbacks(config, "predict", False) if isinstance(bar, ProgressBar)]
    trainer = build_trainer(config, directory.path, config.trainer.max_steps, [*bars], [])
    outputs = trainer.predict(module, dataloaders=batches) or []
    return [float(value) for batch in outputs for value in batch]
