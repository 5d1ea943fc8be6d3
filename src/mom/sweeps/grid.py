"""Run the jobs of a sweep and print a table of results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from mom.config import RunConfig, bind
from mom.errors import JobsFailed, UsageError
from mom.runs.signals import Interrupted
from mom.sweeps.jobs import Job, assign_folders, configures_sweep, labels
from mom.sweeps.launchers import check_launcher, run_jobs
from mom.sweeps.report import print_job_finished, print_job_started, print_jobs, print_next


def run_sweep(composed: Sequence[tuple[list[str], DictConfig]]) -> list[Job]:
    """Check all jobs, run them, and print a table of results.

    Args:
        composed: overrides and composed configuration of each job, including the ``hydra`` group.

    Returns:
        The jobs, all of which succeeded.

    Raises:
        UsageError: if a job is invalid; no job was started.
        JobsFailed: if jobs failed.
        Interrupted: after a signal, once the running jobs have ended.
    """
    jobs, bound = plan(composed)
    launcher = bound[0].launcher
    check_launcher(launcher)
    for job, config in zip(jobs, bound, strict=True):
        if job.state != "succeeded":
            config.check_buildable(devices=not launcher.is_remote)
    folder = Path(composed[0][1].hydra.sweep.dir)
    stopped_by = run_jobs(jobs, launcher, folder, print_job_started, print_job_finished)
    print_jobs(jobs, folder)
    print_next(jobs, folder)
    if stopped_by:
        raise Interrupted(stopped_by)
    failed = sum(job.state != "succeeded" for job in jobs)
    if failed:
        raise JobsFailed(failed, len(jobs))
    return jobs


def plan(composed: Sequence[tuple[list[str], DictConfig]]) -> tuple[list[Job], list[RunConfig]]:
    """Return the jobs with their run directories, and their typed and checked configurations.

    Raises:
        UsageError: for the first invalid job.
    """
    root = Path(composed[0][1].hydra.sweep.dir)
    given = [[text for text in overrides if not configures_sweep(text)] for overrides, _ in composed]
    wanted: list[Path] = []
    configs: list[dict[str, Any]] = []
    bound: list[RunConfig] = []
    for _, config in composed:
        if config.run_dir is not None:
            raise UsageError(
                f"run_dir must be null with -m, got {config.run_dir}; set the sweep's directory with hydra.sweep.dir"
            )
        wanted.append(root / str(config.hydra.sweep.subdir))
        config = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
        config.run_dir = str(wanted[-1])
        bound.append(bind(config))
        configs.append(to_plain(config))
    folders = assign_folders(configs, wanted, root)
    jobs = [
        Job(tuple(overrides), label, config, folder, typed.task.resumes)
        for overrides, label, config, folder, typed in zip(
            given, labels(given), configs, folders, bound, strict=True
        )
    ]
    return jobs, [
        dataclasses.replace(typed, run_dir=str(folder)) for typed, folder in zip(bound, folders, strict=True)
    ]


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration, or a section of it, as plain data with its interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
