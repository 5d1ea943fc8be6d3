"""How the jobs of a sweep are started (``launcher=local|joblib|slurm``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mom.config.section import Section
from mom.errors import RequestError, as_written, one_of


@dataclass(frozen=True)
class LauncherConfig(Section):
    """One job after another.

    Args:
        name: the kind of launcher.
    """

    group: ClassVar[str] = "launcher"
    # Whether jobs run on other machines than the sweep, which then cannot check their devices.
    is_remote: ClassVar[bool] = False

    name: Literal["local", "joblib", "slurm"] = "local"


@dataclass(frozen=True)
class JoblibConfig(LauncherConfig):
    """Several jobs at a time on this machine.

    Args:
        num_workers: jobs at a time. None takes one for each share of the GPUs.
        gpus_per_job: share the visible GPUs out, so many to each job at a time. None leaves every job all of
            them.
    """

    name: Literal["joblib"] = "joblib"
    num_workers: int | None = 2
    gpus_per_job: int | None = None

    def _check(self) -> None:
        self._range("num_workers gpus_per_job", least=1)
        if self.num_workers is None and self.gpus_per_job is None:
            raise RequestError("launcher.num_workers", "null", "an integer, or null with gpus_per_job given")


@dataclass(frozen=True)
class SlurmConfig(LauncherConfig):
    """Each job as a job of a Slurm cluster, by submitit. Nodes and tasks follow from the trainer group.

    Args:
        cluster: ``local`` and ``debug`` are submitit's own stand-ins for Slurm on this machine, for a try.
        timeout_minutes: the time limit of a job.
        cpus_per_task: cores for each process.
        gpus_per_node: None takes ``trainer.devices`` where the accelerator is a GPU.
        memory_gb: memory of a node; None is as the cluster has it.
        partition: of the cluster.
        account: to charge.
        qos: quality of service.
        constraint: features of the nodes.
        max_parallel: jobs at a time.
        setup: lines of shell in front of each job, such as ``module load cuda``.
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
        self._range("timeout_minutes cpus_per_task max_parallel", least=1)
        self._range("gpus_per_node", least=0)
        self._range("memory_gb", above=0)


LAUNCHERS: Mapping[str, type[LauncherConfig]] = {
    section.name: section for section in (LauncherConfig, JoblibConfig, SlurmConfig)
}
"""Every kind of launcher by its name."""


def launcher_section(given: Mapping[str, Any]) -> LauncherConfig:
    """Make the section of the launcher that ``given`` names, the local one where it names none.

    Raises:
        RequestError: no such launcher, or an option that it does not have.
    """
    name = given.get("name", LauncherConfig.name)
    if name not in LAUNCHERS:
        raise RequestError("launcher.name", as_written(name), one_of(name, list(LAUNCHERS)))
    return LAUNCHERS[name].from_mapping(given)
