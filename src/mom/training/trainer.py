"""Fit one phase: a model, some steps, a directory. Everything a task shares with the others."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from mom.callbacks import (
    BalanceBias,
    FinalValidation,
    NonFinite,
    RandomState,
    StepProgressBar,
)
from mom.config import NodeConfig, RunConfig
from mom.cost.machine import keep_freed_memory
from mom.training.checkpoint import AtomicCheckpointIO, Resume
from mom.training.module import TrainingModule
from mom.training.sharding import FullyShardedStrategy

if TYPE_CHECKING:
    pass

CHECKPOINTS = "checkpoints"

# Options that may differ between ranks without a difference to what they compute.
_OF_ONE_RANK = ("cache_dir", "num_processes", "num_workers")
# Options of the trainer group that Lightning's Trainer does not know.
_NOT_LIGHTNINGS = ("on_nonfinite", "activation_checkpointing", "compile", "keep_freed_memory")

# Lightning's advice that does not apply here: the run directory is ours, statistics are reduced over ranks
# before they are logged, and windows of a memory-mapped file need no loader processes.
_NOISE = (
    r".*does not have many workers.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*The dirpath has changed from.*",
    r".*isinstance\(treespec, LeafSpec\).*",
)


def build_callbacks(config: RunConfig, phase: str, has_loggers: bool) -> list[Callback]:
    """The configured callbacks, a guard, random numbers that resume, biases that balance, a last validation.

    Lightning refuses a ``LearningRateMonitor`` where nothing is logged, and a progress bar where none is
    wanted; they are left out there.
    """
    callbacks = [_build_callback(node, phase) for node in config.callbacks.values()]
    unwanted: tuple[type[Callback], ...] = () if has_loggers else (LearningRateMonitor,)
    if not config.trainer.enable_progress_bar:
        unwanted += (ProgressBar,)
    return [
        *(one for one in callbacks if not isinstance(one, unwanted)),
        NonFinite(config.trainer.on_nonfinite),
        RandomState(),
        BalanceBias(),
        FinalValidation(),
    ]


def build_trainer(
    config: RunConfig, directory: Path, max_steps: int, callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    """Lightning's Trainer by the ``trainer`` group, counting optimizer steps and not epochs."""
    _quieten_lightning()
    options = dataclasses.asdict(config.trainer)
    # Lightning takes a share of the epoch (a float) only where it counts epochs.
    if options["check_val_every_n_epoch"] is None and not isinstance(options["val_check_interval"], int):
        options["check_val_every_n_epoch"] = 1
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    options = {name: value for name, value in options.items() if name not in _NOT_LIGHTNINGS}
    if options["strategy"] == "fsdp":
        options["strategy"] = FullyShardedStrategy()
    options |= {"max_steps": max_steps, "max_epochs": -1, "enable_progress_bar": has_bar}
    trainer = Trainer(
        **options,
        default_root_dir=directory,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=_plugins(),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module's sampler shares windows out among ranks itself
    )
    if config.trainer.keep_freed_memory and trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def _plugins() -> list[Any]:
    """Our checkpoints, and under SLURM none of Lightning's own: stopping and going on are ours (SIGTERM, resume)."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def num_processes(config: RunConfig) -> int:
    """Processes that the request trains on, as Lightning counts them; known before any is started."""
    _quieten_lightning()
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


def _request(
    config: RunConfig, module: TrainingModule, phase: str, max_steps: int, resume: Resume | None
) -> dict[str, Any]:
    """What all ranks have to agree on: the resolved configuration, and what is being trained from where."""
    request = dataclasses.asdict(config)
    request["data"] = {name: value for name, value in request["data"].items() if name not in _OF_ONE_RANK}
    return {
        **request,
        "model": module.model.config.to_dict(),
        "phase": {"name": phase, "max_steps": max_steps},
        "resume": {"from step": 0 if resume is None else resume.step},
    }


def _build_callback(node: NodeConfig, phase: str) -> Callback:
    target = node.load()
    is_ours = isinstance(target, type) and issubclass(target, StepProgressBar)
    return node.instantiate(**({"name": phase} if is_ours and "name" not in node.arguments else {}))


def _set_default_folder(callbacks: list[Callback], checkpoints: Path) -> None:
    """Point every ``ModelCheckpoint`` that was given no folder at the phase's."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(checkpoints.absolute())


def _quieten_lightning() -> None:
    """Silence banners, tips and advice; warnings that say something about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
