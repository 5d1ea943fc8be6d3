"""Phases of a run: the directory of each, and the weights passed from one phase to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mom.config import RunConfig
from mom.data.controls.batches import ControlDataModule
from mom.data.language_modeling import LanguageModelingDataModule
from mom.errors import UsageError
from mom.interop import upcycle
from mom.interop.upcycling import check_blocks
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import CHECKPOINTS, RunDirectory, read_status, read_summary
from mom.training.checkpoint import (
    ResumePoint,
    check_architecture,
    last_checkpoint,
    list_options,
    read_checkpoint,
)
from mom.training.fit import fit_phase


def checkpoint_to_resume(config: RunConfig, run: RunDirectory) -> ResumePoint | None:
    """Return the checkpoint to resume from, if any: ``ckpt``, or with ``resume=auto`` the run directory's last one."""
    if config.resume == "auto":
        return last_checkpoint(run.path / CHECKPOINTS)
    return None if config.ckpt is None else read_checkpoint(config.ckpt)


def run_phase(
    config: RunConfig,
    model: MoMForCausalLM,
    data: LanguageModelingDataModule | ControlDataModule,
    run: RunDirectory,
    *,
    phase: str,
    max_steps: int,
) -> dict[str, float]:
    """Fit one phase in its own directory, ``<run>/<phase>``, with its own configuration, status, and summary.

    With ``resume=auto`` a finished phase is skipped, and an interrupted phase resumes from its last checkpoint.

    Args:
        config: the request.
        model: the model to train, in place.
        data: the data module.
        run: directory of the run.
        phase: name of the phase and of its directory.
        max_steps: optimizer steps.

    Returns:
        The results of :func:`fit_phase`, which are also written to ``summary.json``.
    """
    directory = RunDirectory(run.path / phase)
    resume = last_checkpoint(directory.path / CHECKPOINTS) if config.resume == "auto" else None
    if resume is not None:
        check_architecture(resume, model.config.to_dict())
    with subrun(
        directory, {"phase": phase, "max_steps": max_steps, "model": model.config.to_dict()}
    ) as results:
        results.update(
            fit_phase(config, model, data, directory, phase=phase, max_steps=max_steps, resume=resume)
        )
    return results


@contextmanager
def subrun(directory: RunDirectory, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Record a part of a run in its own directory: configuration, status, and finally the summary.

    Yields:
        A dictionary that becomes the summary.
    """
    results: dict[str, Any] = {}
    try:
        directory.write_config(config)
        directory.status("running")
        yield results
        directory.write_summary(results)
        directory.status("succeeded")
    except KeyboardInterrupt:
        directory.status("interrupted")
        raise
    except BaseException as error:
        directory.status("failed", error)
        raise


def finished_results(run: RunDirectory, phase: str) -> dict[str, float] | None:
    """Return the results of a phase that finished in this run directory, or ``None``."""
    finished = read_status(run.path / phase).get("state") == "succeeded"
    return read_summary(run.path / phase) or None if finished else None


def initialize_from(source: MoMForCausalLM, config: MoMConfig) -> MoMForCausalLM:
    """Build a model with the weights of ``source``, upcycled if ``source`` is plain and ``config`` has stages.

    Options of routing and training (temperature, top_k, dropout, …) come from ``config``; those with which the blocks
    would compute another function have to agree.

    Raises:
        UsageError: the weights of ``source`` (from ``init``) do not fit.
    """
    if config.num_stages and not source.config.num_stages:
        return upcycle(source, config)
    check_blocks(source.config, config)
    model = MoMForCausalLM(config)
    given_shapes, wanted_shapes = (
        {name: tuple(weight.shape) for name, weight in either.state_dict().items()}
        for either in (source, model)
    )
    if given_shapes != wanted_shapes:
        given, wanted = source.config.as_mapping(), config.as_mapping()
        differing = sorted(name for name in given.keys() & wanted.keys() if given[name] != wanted[name])
        raise UsageError(
            f"init has weights of a model with {list_options(given, differing)}, but the requested model has "
            f"{list_options(wanted, differing)}"
        )
    model.load_state_dict(source.state_dict())
    return model
