"""The phases of a run: each in a folder of its own, and the weights that go from one to the next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mom.config import RunConfig
from mom.console import announce
from mom.data.language_modeling import LanguageModelingDataModule
from mom.errors import RequestError
from mom.interop import load_model, upcycle
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.checkpoint import Resume, check_architecture, last_checkpoint, read_checkpoint
from mom.training.fit import fit_phase
from mom.training.sharding import initialized_once
from mom.training.trainer import CHECKPOINTS


def checkpoint_to_resume(config: RunConfig, run: RunDirectory) -> Resume | None:
    """Where a training goes on from: ``ckpt``, or with ``resume=auto`` the run directory's own."""
    if config.resume == "auto":
        return last_checkpoint(run.path / CHECKPOINTS)
    return None if config.ckpt is None else read_checkpoint(config.ckpt)


def run_phase(
    config: RunConfig,
    model: MoMForCausalLM,
    data: LanguageModelingDataModule,
    run: RunDirectory,
    *,
    phase: str,
    max_steps: int,
) -> dict[str, float]:
    """Fit one phase in ``<run>/<phase>``, with the status, configuration and summary that a run has.

    With ``resume=auto`` a phase that this run directory has behind it is not trained again, and one that was
    interrupted goes on from its last checkpoint.

    Args:
        config: the request.
        model: what to train, in place.
        data: the data module.
        run: the directory of the whole run.
        phase: the phase's name and that of its folder.
        max_steps: optimizer steps.

    Returns:
        What ``fit_phase`` returns, which is also written as ``summary.json``.
    """
    directory = RunDirectory(run.path / phase)
    resume = last_checkpoint(directory.path / CHECKPOINTS) if config.resume == "auto" else None
    if resume is not None:
        check_architecture(resume, model.config.to_dict())
        results = earlier_results(run, phase)
        if results is not None and results["steps"] == resume.step == max_steps:
            with initialized_once(config.trainer.strategy):
                model.load_state_dict(load_model(resume.path).state_dict())
            announce(f"{phase}: done before, {max_steps} steps")
            return results
    plain = {"phase": phase, "max_steps": max_steps, "model": model.config.to_dict()}
    with recorded(directory, plain) as results:
        results.update(
            fit_phase(config, model, data, directory, phase=phase, max_steps=max_steps, resume=resume)
        )
    return results


@contextmanager
def recorded(directory: RunDirectory, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A part of a run in a folder of its own: its configuration, its status, and at its end its summary.

    Args:
        directory: the part's folder.
        config: what it does, plain data.

    Yields:
        a dictionary to put the results in.
    """
    directory.write_config(config)
    directory.status("running")
    results: dict[str, Any] = {}
    try:
        yield results
    except KeyboardInterrupt:
        directory.status("interrupted")
        raise
    except BaseException as error:
        directory.status("failed", error)
        raise
    directory.write_summary(results)
    directory.status("succeeded")


def earlier_results(run: RunDirectory, phase: str) -> dict[str, float] | None:
    """The results of a phase that this run directory has behind it; ``None`` if it has not."""
    path = Path(run.path) / phase / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def adopt(start: MoMForCausalLM, config: MoMConfig) -> MoMForCausalLM:
    """A model by ``config`` with the weights of ``start``, upcycled if it is plain and ``config`` has stages.

    What has no weights (temperature, top_k, dropout, …) is taken from ``config``.

    Raises:
        RequestError: ``init``, if the weights do not fit.
    """
    if config.num_stages and not start.config.num_stages:
        return upcycle(start, config)
    model = MoMForCausalLM(config)
    theirs = {name: tuple(weight.shape) for name, weight in start.state_dict().items()}
    ours = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if theirs != ours:
        given, wanted = start.config.as_mapping(), config.as_mapping()
        differing = sorted(name for name in given.keys() & wanted.keys() if given[name] != wanted[name])
        raise RequestError(
            "init",
            "weights of a model with " + ", ".join(f"{name} {given[name]}" for name in differing),
            "a model like the one asked for, with "
            + ", ".join(f"{name} {wanted[name]}" for name in differing),
        )
    model.load_state_dict(start.state_dict())
    return model
