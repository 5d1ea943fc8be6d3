"""Build Lightning's Trainer and its callbacks from the request."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from mom.callbacks import BalanceBias, FinalValidation, NonFinite, SettleChoices, StepProgressBar
from mom.config import NodeConfig, RunConfig
from mom.cost.machine import keep_freed_memory
from mom.training.checkpoint import AtomicCheckpointIO
from mom.training.sharding import FullyShardedStrategy

# Options of the trainer group that are ours, not Lightning's.
_OWN_OPTIONS = ("on_nonfinite", "activation_checkpointing", "compile", "keep_freed_memory")

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}

# Advice of Lightning that does not apply: we manage the run directory, reduce statistics over ranks before logging,
# need no loader processes for windows of a memory-mapped file, and train small models on the CPU on purpose.
_IRRELEVANT_ADVICE = (
    r".*does not have many workers.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*You requested to overfit but enabled.*",
    r".*The dirpath has changed from.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*GPU available but not used.*",
    r".*You're using the WeightAveraging callback with a model that overrides the configure_model.*",
)


def build_callbacks(config: RunConfig, phase: str, has_loggers: bool) -> list[Callback]:
    """Build the configured callbacks and those that every trainer needs.

    ``LearningRateMonitor`` is omitted without loggers, and the progress bar if it is disabled, because Lightning would
    reject them.
    """
    callbacks = [_build_callback(node, phase) for node in config.callbacks.values()]
    omitted: tuple[type[Callback], ...] = () if has_loggers else (LearningRateMonitor,)
    if not config.trainer.enable_progress_bar:
        omitted += (ProgressBar,)
    return [
        *(callback for callback in callbacks if not isinstance(callback, omitted)),
        NonFinite(config.trainer.on_nonfinite),
        BalanceBias(),
        SettleChoices(),
        FinalValidation(),
    ]


def build_trainer(
    config: RunConfig, directory: Path, max_steps: int, callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    """Build Lightning's Trainer from the ``trainer`` group; it counts optimizer steps, not epochs."""
    _quiet_lightning()
    options = dataclasses.asdict(config.trainer)
    # Lightning accepts a fraction of the epoch (a float) only when it counts epochs.
    if options["check_val_every_n_epoch"] is None and not isinstance(options["val_check_interval"], int):
        options["check_val_every_n_epoch"] = 1
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    options = {name: value for name, value in options.items() if name not in _OWN_OPTIONS}
    if options["strategy"] == "fsdp":
        options["strategy"] = FullyShardedStrategy()
    if options["profiler"] is not None:
        options["profiler"] = _PROFILERS[options["profiler"]](dirpath=directory, filename="profile")
    options |= {"max_steps": max_steps, "max_epochs": -1, "enable_progress_bar": has_bar}
    trainer = Trainer(
        **options,
        default_root_dir=directory,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=_plugins(),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module's sampler splits the windows among ranks
    )
    # Ours do more, and Lightning's handler of SIGTERM calls a collective that other ranks may not be waiting for.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if config.trainer.keep_freed_memory and trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def num_processes(config: RunConfig) -> int:
    """Return Lightning's number of processes for the request, without starting them."""
    _quiet_lightning()
    options = config.trainer
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).world_size


def _build_callback(node: NodeConfig, phase: str) -> Callback:
    target = node.load()
    is_ours = isinstance(target, type) and issubclass(target, StepProgressBar)
    return node.instantiate(**({"name": phase} if is_ours and "name" not in node.arguments else {}))


def _plugins() -> list[Any]:
    """Return our checkpoint writer, and on Slurm disable Lightning's requeueing, because we resume runs ourselves."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _quiet_lightning() -> None:
    """Silence Lightning's banners, tips, and irrelevant advice, but not its other warnings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IRRELEVANT_ADVICE:
        warnings.filterwarnings("ignore", message=message)
