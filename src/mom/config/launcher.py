"""Options of the ``launcher`` group: how the jobs of a sweep are started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mom.config.section import Section, section_by_name
from mom.errors import UsageError


@dataclass(frozen=True)
class LauncherConfig(Section):
    """Run one job at a time."""

    group: ClassVar[str] = "launcher"
    # Whether jobs run on other machines, so that the sweep cannot check their devices.
    is_remote: ClassVar[bool] = False

    name: Literal["local", "joblib", "slurm"] = "local"


@dataclass(frozen=True)
class JoblibConfig(LauncherConfig):
    """Run several jobs in parallel on this machine.

    Args:
        num_workers: jobs to run in parallel. None runs as many as the visible GPUs allow.
        gpus_per_job: GPUs for each job; parallel jobs use different GPUs. None lets every job see all.
    """

    name: Literal["joblib"] = "joblib"
    num_workers: int | None = 2
    gpus_per_job: int | None = None

    def _check(self) -> None:
        self._range("num_workers gpus_per_job", ge=1)
        if self.num_workers is None and self.gpus_per_job is None:
            raise UsageError(
                "launcher.num_workers must be an integer unless launcher.gpus_per_job is set, got null"
            )


@dataclass(frozen=True)
class SlurmConfig(LauncherConfig):
    """Run each job on a Slurm cluster with submitit. The trainer group determines the nodes and tasks.

    Args:
        cluster: ``local`` and ``debug`` are submitit's substitutes for Slurm on this machine, for testing.
        timeout_minutes: time limit of a job.
        cpus_per_task: CPU cores per process.
        gpus_per_node: None is ``trainer.devices`` if the accelerator is a GPU, else 0.
        memory_gb: memory per node; None is the cluster's default.
        qos: quality of service.
        constraint: required features of the nodes.
        max_parallel: maximum jobs that are submitted at a time.
        setup: shell commands to run before each job, such as ``module load cuda``.
    """

    is_remote: ClassVar[bool] = True

    name: Literal["slurm"] = "slurm"
    cluster: Literal["slurm", "local", "debug"] = "slurm"
    timeout_minutes: int = 60
    cpus_per_task: int = 4
    gpus_per_node: int | None = None
    memory_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    max_parallel: int = 64
    setup: list[str] | None = None

    def _check(self) -> None:
        self._range("timeout_minutes cpus_per_task max_parallel", ge=1)
        self._range("gpus_per_node", ge=0)
        self._range("memory_gb", gt=0)


LAUNCHERS: Mapping[str, type[LauncherConfig]] = {
    section.name: section for section in (LauncherConfig, JoblibConfig, SlurmConfig)
}
"""Sections by name of the launcher."""


def launcher_section(given: Mapping[str, Any]) -> LauncherConfig:
    """Create the section of the launcher in ``given``, by default the local one.

    Raises:
        UsageError: for an unknown launcher, or an invalid option.
    """
    return section_by_name(LAUNCHERS, given, "name", LauncherConfig.name)
