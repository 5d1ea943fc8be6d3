"""Fit a model: one phase of a run, from its data to its summary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from mom.callbacks import (
    LastCheckpoint,
    RankAgreement,
    StoppedEarly,
    ThroughputMonitor,
)
from mom.config import RunConfig
from mom.cost.estimate import forward_memory
from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.tokenizer import save_tokenizer
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.runs.provenance import provenance
from mom.training.checkpoint import Resume
from mom.training.interruption import Interruption
from mom.training.language_modeling import LanguageModelingModule
from mom.training.loggers import build_loggers, finish_loggers
from mom.training.module import TrainingModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from mom.training.trainer import CHECKPOINTS, _request, _set_default_folder, build_callbacks, build_trainer


def fit_phase(
    config: RunConfig,
    model: MoMForCausalLM,
    data: LanguageModelingDataModule,
    directory: RunDirectory,
    *,
    phase: str,
    max_steps: int,
    resume: Resume | None = None,
) -> dict[str, float]:
    """Train a language model in place for ``max_steps`` optimizer steps and validate it: :func:`fit_module`.

    Args:
        config: the request.
        model: what to train.
        data: the data module, set up.
        directory: where the phase writes.
        phase: its name, for the progress bar and the loggers.
        max_steps: optimizer steps from the phase's start, those before ``resume`` included.
        resume: a checkpoint to go on from, optimizer, schedule and data order with it.

    Returns:
        What :func:`fit_module` returns, and ``compute/forward_memory``, the bytes of a forward over one batch.
    """
    module = LanguageModelingModule(
        model_config=model.config.to_dict(),
        optimizer=dataclasses.asdict(config.optimizer),
        model=model,
        bytes_per_token=data.validation_bytes_per_token,
    )
    results = fit_module(
        config, module, data, data.tokenizer, directory, phase=phase, max_steps=max_steps, resume=resume
    )
    memory = forward_memory(model.config, data.config.batch_size, data.config.sequence_length)
    return results | {"compute/forward_memory": memory.total}


def fit_module(
    config: RunConfig,
    module: TrainingModule,
    data: LightningDataModule,
    tokenizer: PreTrainedTokenizerBase,
    directory: RunDirectory,
    *,
    phase: str,
    max_steps: int,
    resume: Resume | None = None,
) -> dict[str, float]:
    """Train a module's model in place for ``max_steps`` optimizer steps and validate it.

    Writes ``metrics.csv`` (or what the loggers write), ``checkpoints/{last,best}.ckpt`` and the model's
    ``tokenizer/`` in ``directory``.

    Args:
        config: the request; its seed is set anew, so that every phase sees the same data order and dropout.
        module: what to train.
        data: the data module, set up.
        tokenizer: of the data, kept beside the checkpoints so that it travels with them.
        directory: where the phase writes.
        phase: its name, for the progress bar and the loggers.
        max_steps: optimizer steps from the phase's start, those before ``resume`` included.
        resume: a checkpoint to go on from, optimizer, schedule and data order with it.

    Returns:
        The last validation's metrics without ``val/`` in front of ``depth/*``, ``routing/*`` and ``compute/*``,
        ``parameters``, ``depth/graph`` and ``throughput/tokens_per_second``; flat, and all measured here.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after ``last.ckpt`` was written.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    if config.trainer.activation_checkpointing:
        module.model.gradient_checkpointing_enable()
    if config.trainer.compile:
        module.model.model.compile_layers()
    save_tokenizer(tokenizer, directory)
    loggers = build_loggers(
        config.logger.values(),
        directory.path,
        run=Path(config.run_dir).name,
        phase=phase,
        hyperparameters=dataclasses.asdict(config) | {"provenance": provenance(data)},
        steps_before=0 if resume is None else resume.step,
    )
    interruption = Interruption()
    callbacks = build_callbacks(config, phase, bool(loggers))
    callbacks.append(RankAgreement(_request(config, module, phase, max_steps, resume)))
    _set_default_folder(callbacks, directory.path / CHECKPOINTS)
    callbacks.append(StoppedEarly())
    # Last in the list: it saves the state of all the others.
    callbacks.append(LastCheckpoint(directory.path / CHECKPOINTS, lambda: interruption.requested))
    trainer = build_trainer(config, directory.path, max_steps, callbacks, loggers)
    exit_code = 1
    try:
        with interruption:
            trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume.path))
            if "val/loss" not in trainer.callback_metrics and config.trainer.limit_val_batches != 0:
                trainer.validate(module, datamodule=data, verbose=False)  # resumed at the end
        if interruption.requested:
            raise KeyboardInterrupt  # it came after the last step, so the last checkpoint is the end
        exit_code = 0
    finally:
        finish_loggers(loggers, exit_code)
    return collect_results(trainer, module, callbacks)


def collect_results(trainer: Trainer, module: TrainingModule, callbacks: list[Callback]) -> dict[str, float]:
    """What was measured last; ``depth/*``, ``routing/*``, ``compute/*`` of the validation without ``val/``."""
    results: dict[str, float] = {
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "steps": trainer.global_step,
    }
    for name, value in trainer.callback_metrics.items():
        if name.startswith(("val/depth/", "val/routing/", "val/compute/")):
            results[name.removeprefix("val/")] = float(value)
        elif name.startswith("val/"):
            results[name] = float(value)
    for callback in callbacks:
        if isinstance(callback, ThroughputMonitor) and callback.tokens_per_second is not None:
            results["throughput/tokens_per_second"] = callback.tokens_per_second
            if callback.mfu is not None:
                results["throughput/mfu"] = callback.mfu
            results["throughput/training_flops"] = callback.training_flops
    return results | {"depth/graph": module.model.config.graph_depth}
