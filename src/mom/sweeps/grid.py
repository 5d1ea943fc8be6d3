"""A sweep from its composed jobs to its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mom.config import RunConfig, bind
from mom.errors import JobsFailed, RequestError
from mom.sweeps.jobs import Job, is_about_sweep, labels, place
from mom.sweeps.launchers import carry_out, check_launcher
from mom.sweeps.report import print_jobs, tell_ended, tell_started


def sweep(composed: Sequence[tuple[list[str], DictConfig]]) -> list[Job]:
    """Check all jobs, carry them out, and print a table of them.

    Args:
        composed: each job's overrides and the configuration they compose to, Hydra's own part included.

    Returns:
        The jobs, all of which succeeded.

    Raises:
        RequestError: a job that cannot be; none was started.
        JobsFailed: some failed.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running jobs have ended.
    """
    jobs, bound = plan(composed)
    launcher = bound[0].launcher
    check_launcher(launcher)
    for job, config in zip(jobs, bound, strict=True):
        if job.state != "succeeded":
            config.check_buildable(devices=not launcher.is_remote)
    folder = Path(composed[0][1].hydra.sweep.dir)
    completed = carry_out(jobs, launcher, folder, tell_started, tell_ended)
    print_jobs(jobs, folder)
    if not completed:
        raise KeyboardInterrupt
    failed = sum(job.state != "succeeded" for job in jobs)
    if failed:
        raise JobsFailed(failed, len(jobs))
    return jobs


def plan(composed: Sequence[tuple[list[str], DictConfig]]) -> tuple[list[Job], list[RunConfig]]:
    """The jobs with their folders, and their configurations, typed and checked.

    Raises:
        RequestError: for the first job that cannot be.
    """
    root = Path(composed[0][1].hydra.sweep.dir)
    wanted = [root / str(config.hydra.sweep.subdir) for _, config in composed]
    given = [[one for one in overrides if not is_about_sweep(one)] for overrides, _ in composed]
    configs: list[dict[str, Any]] = []
    bound: list[RunConfig] = []
    for (_, config), folder in zip(composed, wanted, strict=True):
        if config.run_dir is not None:
            raise RequestError(
                "run_dir", config.run_dir, "null under -m; hydra.sweep.dir is the sweep's folder"
            )
        own = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
        own.run_dir = str(folder)
        bound.append(bind(own))
        resolved = OmegaConf.to_container(own, resolve=True)
        assert isinstance(resolved, dict)
        configs.append({str(name): value for name, value in resolved.items()})
    jobs = [
        Job(tuple(overrides), label, config, folder, typed.task.resumes)
        for overrides, label, config, folder, typed in zip(
            given, labels(given), configs, place(configs, wanted, root), bound, strict=True
        )
    ]
    return jobs, [
        dataclasses.replace(typed, run_dir=str(job.folder)) for typed, job in zip(bound, jobs, strict=True)
    ]
