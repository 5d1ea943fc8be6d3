"""Train a model for one phase of a run, and collect its final metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed import DistError

from mom.callbacks import ExactResume, LastCheckpoint, RankAgreement, ThroughputMonitor
from mom.config import RunConfig
from mom.console import announce, print_table
from mom.cost.estimate import forward_memory
from mom.cost.summary import summary_table
from mom.data.controls.batches import ControlDataModule
from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.resumable import ResumableDataModule
from mom.data.tokenizer import save_tokenizer, vocabulary_identity
from mom.errors import UsageError
from mom.interop.weights import content_of_checkpoint
from mom.interop.weights import read_checkpoint as load_plain
from mom.metrics.names import CHANCE
from mom.model import MoMForCausalLM
from mom.runs.directory import CHECKPOINTS, RunDirectory
from mom.runs.signals import Interrupted
from mom.training.checkpoint import ResumePoint
from mom.training.controls import ControlModule
from mom.training.interruption import Interruption
from mom.training.language_modeling import LanguageModelingModule
from mom.training.loggers import open_loggers
from mom.training.module import TrainingModule, validation_metrics
from mom.training.trainer import build_callbacks, build_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Data options that may differ between ranks without changing what they compute.
_LOCAL_OPTIONS = ("cache_dir", "num_processes", "num_workers")


def fit_phase(
    config: RunConfig,
    model: MoMForCausalLM,
    data: LanguageModelingDataModule | ControlDataModule,
    directory: RunDirectory,
    *,
    phase: str,
    max_steps: int,
    resume: ResumePoint | None = None,
) -> dict[str, float]:
    """Train a language model in place with :func:`fit_module`, which has the same arguments.

    Returns:
        The results of :func:`fit_module`; ``compute/forward_memory``, the bytes of a forward pass over one batch; and
        for a control ``chance/exact_match``.
    """
    if data.tokenizer is not None:
        model.config.vocabulary = vocabulary_identity(data.tokenizer)
    options: dict[str, Any] = {
        "model_config": model.config.to_dict(),
        "optimizer": dataclasses.asdict(config.optimizer),
        "model": model,
    }
    module: LanguageModelingModule
    if isinstance(data, ControlDataModule):
        module = ControlModule(**options, buckets=data.control.buckets)
        known = {CHANCE: data.control.chance}
    else:
        module = LanguageModelingModule(
            **options, bytes_per_token=data.validation_bytes_per_token, sets=data.validation_sets
        )
        known = {}
    if resume is None:
        print_table(summary_table(model, data.config.sequence_length))
    results = fit_module(
        config, module, data, data.tokenizer, directory, phase=phase, max_steps=max_steps, resume=resume
    )
    memory = forward_memory(model.config, data.config.batch_size, data.config.sequence_length)
    return results | known | {"compute/forward_memory": memory.total}


def fit_module(
    config: RunConfig,
    module: TrainingModule,
    data: LightningDataModule,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: RunDirectory,
    *,
    phase: str,
    max_steps: int,
    resume: ResumePoint | None = None,
) -> dict[str, float]:
    """Train a module's model in place for ``max_steps`` optimizer steps and validate it.

    Writes the loggers' files, ``checkpoints/{last,best}.ckpt``, and ``tokenizer/`` to ``directory``.

    Args:
        config: the request; its seed is set again, so that every phase has the same data order and dropout.
        module: the module to train.
        data: the data module, set up.
        tokenizer: the data's tokenizer, saved with the checkpoints; None if the data has none.
        directory: where the phase writes.
        phase: its name, for the progress bar and the loggers.
        max_steps: optimizer steps of the phase, including those before ``resume``.
        resume: a checkpoint to resume from: weights, optimizer, schedule, and data order. If nothing is left to train,
            only its weights and results are loaded.

    Returns:
        The results of :func:`collect_results`.

    Raises:
        Interrupted: on a signal, after ``last.ckpt`` was written.
        RankDied: another process of the run died.
    """
    if resume is not None and resume.is_finished(max_steps):
        return _load_finished(module, data, resume, phase)
    seed_everything(config.seed, workers=True, verbose=False)
    if config.trainer.activation_checkpointing:
        module.model.gradient_checkpointing_enable()
    if config.trainer.compile:
        module.model.model.compile_layers()
    if tokenizer is not None:
        save_tokenizer(tokenizer, directory)
    steps_before = 0 if resume is None else resume.step
    checkpoints = directory.path / CHECKPOINTS
    interruption = Interruption()
    with open_loggers(config, directory.path, phase=phase, data=data, steps_before=steps_before) as loggers:
        last = LastCheckpoint(
            checkpoints,
            lambda: interruption.requested,
            lambda: collect_results(trainer, module, callbacks),
        )
        request = _shared_request(config, module, phase, max_steps, steps_before)
        ranks = RankAgreement({**request, **_shared_content(data, resume)})
        callbacks = [
            *build_callbacks(config, phase, bool(loggers)),
            ranks,
            ExactResume(),
            last,  # because it saves the state of all other callbacks
        ]
        _set_default_dirpath(callbacks, checkpoints)
        trainer = build_trainer(config, directory.path, max_steps, callbacks, loggers)
        with interruption:
            try:
                trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume.path))
            except RuntimeError as error:
                if type(error) is RuntimeError or isinstance(error, DistError):
                    ranks.check_alive()
                raise
            if last.results is None and config.trainer.limit_val_batches != 0:
                # A checkpoint of an earlier version, or of more steps than requested.
                trainer.loggers = []
                trainer.validate(module, datamodule=data, verbose=False)
        if last.stopping or interruption.requested:  # during the last step, so last.ckpt is complete
            raise Interrupted(last.stopping or interruption.requested)
    return last.results or collect_results(trainer, module, callbacks)


def collect_results(trainer: Trainer, module: TrainingModule, callbacks: list[Callback]) -> dict[str, float]:
    """Collect the final metrics of a trainer.

    Returns:
        The last validation's ``val/*``, except that ``depth/*``, ``routing/*``, and ``compute/*`` lose the prefix;
        ``parameters``, ``steps``, ``depth/graph``; and ``throughput/tokens_per_second``, ``throughput/mfu``, and
        ``throughput/training_flops`` if they were measured.
    """
    results: dict[str, float] = {
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "steps": trainer.global_step,
    }
    results |= validation_metrics(trainer.callback_metrics)
    for callback in callbacks:
        if isinstance(callback, ThroughputMonitor) and callback.tokens_per_second is not None:
            results["throughput/tokens_per_second"] = callback.tokens_per_second
            if callback.mfu is not None:
                results["throughput/mfu"] = callback.mfu
            results["throughput/training_flops"] = callback.training_flops
    return results | {"depth/graph": module.model.config.graph_depth}


def _load_finished(
    module: TrainingModule, data: LightningDataModule, resume: ResumePoint, phase: str
) -> dict[str, float]:
    """Load the weights of a training that has ended, and return its results."""
    if isinstance(data, ResumableDataModule) and resume.data:
        data.check_state(resume.data)
    assert resume.results is not None
    announce(f"{phase}: already trained for {resume.step} steps")
    if not any(
        parameter.is_meta for parameter in module.parameters()
    ):  # this process does not hold the weights
        module.load_state_dict(load_plain(resume.path, "resume")["state_dict"])
    return dict(resume.results)


def _shared_request(
    config: RunConfig, module: TrainingModule, phase: str, max_steps: int, steps_before: int
) -> dict[str, Any]:
    """Return the request on which all ranks must agree: configuration, model, phase, and step to resume from."""
    request = dataclasses.asdict(config)
    request["data"] = {name: value for name, value in request["data"].items() if name not in _LOCAL_OPTIONS}
    return {
        **request,
        "model": module.model.config.to_dict(),
        "phase": {"name": phase, "max_steps": max_steps},
        "resume": {"from step": steps_before},
    }


def _shared_content(data: LightningDataModule, resume: ResumePoint | None) -> dict[str, str]:
    """Return the files on whose content all ranks must agree, which may be local to each node.

    Weights to start from need not be the same: those of the first rank are sent to the others.
    """
    content = {}
    if isinstance(data, ResumableDataModule):
        content = {f"the content of {name}": found[:16] for name, found in data.contents.items()}
    if resume is not None:
        content[f"the content of {resume.path}"] = content_of_checkpoint(resume.path)[:16]
    return content


def _set_default_dirpath(callbacks: list[Callback], checkpoints: Path) -> None:
    """Make every ``ModelCheckpoint`` without a ``dirpath`` write to the phase's checkpoints.

    Raises:
        UsageError: its ``filename`` is outside of its directory.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            if callback.dirpath is None:
                callback.dirpath = str(checkpoints.absolute())
            root = Path(callback.dirpath).resolve()
            if not (root / (callback.filename or "")).resolve().is_relative_to(root):
                raise UsageError(
                    f"the filename of a ModelCheckpoint must be a name within {root}, got {callback.filename}"
                )
