"""Carry out the jobs of a sweep: one after another, several at a time, or on a Slurm cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mom.config.launcher import JoblibConfig, LauncherConfig, SlurmConfig
from mom.errors import RequestError
from mom.sweeps.jobs import Job
from mom.sweeps.process import Stop, run_job, settle_abandoned, this_program

Told = Callable[[Job], None]


def check_launcher(launcher: LauncherConfig) -> None:
    """Refuse a launcher whose library is missing, or GPUs that are.

    Raises:
        RequestError: before anything was started.
    """
    library = {"joblib": "joblib", "slurm": "submitit"}.get(launcher.name)
    if library is not None and importlib.util.find_spec(library) is None:
        raise RequestError(
            "launcher",
            launcher.name,
            f"local, or {library} installed: pip install 'mixture-of-modules[sweep]'",
        )
    if isinstance(launcher, JoblibConfig):
        _shares(launcher)
    if isinstance(launcher, SlurmConfig):
        _slurm_executor(launcher, Path())


def carry_out(
    jobs: Sequence[Job], launcher: LauncherConfig, folder: Path, started: Told, ended: Told
) -> bool:
    """Bring every job to an end. Jobs that succeeded before are left as they are.

    Args:
        jobs: the jobs.
        launcher: where they run, and how many at a time.
        folder: of the sweep.
        started: called when a job's process begins (not by Slurm).
        ended: called when a job has come to an end.

    Returns:
        Whether all was carried out; false after Ctrl-C or SIGTERM, which end the jobs that run.
    """
    due = [job for job in jobs if job.state != "succeeded"]
    with _stopping() as stop:
        if isinstance(launcher, JoblibConfig):
            _parallel(due, launcher, stop, started, ended)
        elif isinstance(launcher, SlurmConfig):
            _on_slurm(due, launcher, folder, stop, ended)
        else:
            for job in due:
                _one(job, stop, started, ended)
    for job in due:
        settle_abandoned(job)
    return not stop.requests


def _one(job: Job, stop: Stop, started: Told, ended: Told) -> None:
    if not stop.requests:
        run_job(job, this_program(), stop, started)
        ended(job)


def _parallel(jobs: Sequence[Job], launcher: JoblibConfig, stop: Stop, started: Told, ended: Told) -> None:
    """Several at a time by joblib, in threads: each only waits for a process."""
    from joblib import Parallel, delayed

    shares = _shares(launcher)
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for share in shares:
        free.put(share)

    def on_a_share(job: Job) -> None:
        share = free.get()
        try:
            _one(dataclasses.replace(job, devices=share), stop, started, ended)
        finally:
            free.put(share)

    Parallel(n_jobs=len(shares), backend="threading", batch_size=1)(delayed(on_a_share)(job) for job in jobs)


def _shares(launcher: JoblibConfig) -> list[str | None]:
    """For each worker the GPUs its jobs may see; None for all."""
    if launcher.gpus_per_job is None:
        assert launcher.num_workers is not None
        return [None] * launcher.num_workers
    size = launcher.gpus_per_job
    gpus = _visible_gpus()
    shares: list[str | None] = [
        ",".join(gpus[first : first + size]) for first in range(0, len(gpus) - size + 1, size)
    ]
    wanted = launcher.num_workers or max(1, len(shares))
    if wanted > len(shares):
        raise RequestError(
            "launcher.gpus_per_job", size, f"GPUs for {wanted} jobs at a time; {len(gpus)} can be seen"
        )
    return shares[:wanted]


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [one.strip() for one in visible.split(",") if one.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _on_slurm(jobs: Sequence[Job], launcher: SlurmConfig, folder: Path, stop: Stop, ended: Told) -> None:
    """Hand every job to Slurm with the resources its trainer needs, and wait for them all."""
    submitted: list[tuple[Job, Any]] = []
    for job in jobs:
        executor = _slurm_executor(launcher, folder / ".submitit")
        executor.update_parameters(**slurm_parameters(job, launcher))
        submitted.append((job, executor.submit(run_job, job, this_program(), Stop(), _say_nothing)))
    open_ones = list(submitted)
    canceled = False
    while open_ones:
        if stop.requests and not canceled:
            canceled = True
            for _, submission in open_ones:
                submission.cancel()
        for job, submission in [*open_ones]:
            if submission.done():
                open_ones.remove((job, submission))
                settle_abandoned(job)
                ended(job)
        time.sleep(0.1 if launcher.cluster in ("local", "debug") else 5)


def slurm_parameters(job: Job, launcher: SlurmConfig) -> dict[str, Any]:
    """What submitit is told about a job: Lightning wants one Slurm task for each device of a node."""
    trainer = job.config["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    gpus = launcher.gpus_per_node
    if gpus is None:
        gpus = devices if trainer["accelerator"] in ("gpu", "cuda") else 0
    wanted = {
        "name": f"mom-{job.folder.name}",
        "timeout_min": launcher.timeout_minutes,
        "nodes": trainer["num_nodes"],
        "tasks_per_node": devices,
        "cpus_per_task": launcher.cpus_per_task,
        "gpus_per_node": gpus,
        "mem_gb": launcher.memory_gb,
        "slurm_partition": launcher.partition,
        "slurm_account": launcher.account,
        "slurm_qos": launcher.qos,
        "slurm_constraint": launcher.constraint,
        "slurm_setup": launcher.setup,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _slurm_executor(launcher: SlurmConfig, folder: Path) -> Any:
    import submitit

    try:
        return submitit.AutoExecutor(folder=folder / "%j", cluster=launcher.cluster)
    except RuntimeError as reason:
        raise RequestError(
            "launcher.cluster", launcher.cluster, f"a cluster that is here: {reason}"
        ) from reason


def _say_nothing(job: Job) -> None:
    """Whoever waits for a job on another machine is told only that it ended."""


@contextlib.contextmanager
def _stopping() -> Iterator[Stop]:
    """Count SIGINT and SIGTERM instead of being ended by them."""
    stop = Stop()

    def count(number: int, frame: FrameType | None) -> None:
        stop.requests += 1
        if stop.requests == 1:
            print("\nStopping: running jobs save and end. Once more ends them at once.", flush=True)

    before = {
        number: signal.signal(number, count)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
