"""Run the jobs of a sweep: one at a time, in parallel, or on a Slurm cluster."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any

from mom.config.launcher import JoblibConfig, LauncherConfig, SlurmConfig
from mom.config.machine import check_parallel_jobs
from mom.errors import UsageError
from mom.runs.signals import handling_signals, notify
from mom.sweeps.jobs import Job
from mom.sweeps.process import Stop, run_job, settle_abandoned, this_program

OnJob = Callable[[Job], None]


def check_launcher(launcher: LauncherConfig) -> None:
    """Check that the launcher's library is installed and its GPUs or cluster are available.

    Raises:
        UsageError: before any job is started.
    """
    library = {"joblib": "joblib", "slurm": "submitit"}.get(launcher.name)
    if library is not None and importlib.util.find_spec(library) is None:
        raise UsageError(
            f"launcher={launcher.name} requires {library}: pip install 'mixture-of-modules[sweep]'"
        )
    check_parallel_jobs(launcher)
    if isinstance(launcher, JoblibConfig):
        _gpu_groups(launcher)
    if isinstance(launcher, SlurmConfig):
        _slurm_executor(launcher, Path())


def run_jobs(
    jobs: Sequence[Job], launcher: LauncherConfig, folder: Path, on_start: OnJob, on_end: OnJob
) -> int:
    """Run all jobs, except those that succeeded earlier.

    Args:
        jobs: in the order in which they start.
        launcher: where to run them, and how many at a time.
        folder: the sweep's directory, for Slurm's logs.
        on_start: called when the process of a job starts, except on Slurm.
        on_end: called when a job has ended.

    Returns:
        The number of the signal that stopped the running jobs; 0 if all jobs ran.
    """
    pending = [job for job in jobs if job.state != "succeeded"]
    with _stopping() as stop:
        if isinstance(launcher, JoblibConfig):
            _run_in_parallel(pending, launcher, stop, on_start, on_end)
        elif isinstance(launcher, SlurmConfig):
            _run_on_slurm(pending, launcher, folder, stop, on_end)
        else:
            for job in pending:
                _run_unless_stopped(job, stop, on_start, on_end)
    for job in pending:
        settle_abandoned(job)
    return stop.signal


def _run_unless_stopped(job: Job, stop: Stop, on_start: OnJob, on_end: OnJob) -> None:
    if not stop.requests:
        run_job(job, this_program(), stop, on_start)
        on_end(job)


def _run_in_parallel(
    jobs: Sequence[Job], launcher: JoblibConfig, stop: Stop, on_start: OnJob, on_end: OnJob
) -> None:
    """Run several jobs at a time, each in a thread of joblib that waits for the job's process."""
    from joblib import Parallel, delayed

    groups = _gpu_groups(launcher)
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for group in groups:
        free.put(group)

    def run(job: Job) -> None:
        group = free.get()
        try:
            _run_unless_stopped(dataclasses.replace(job, devices=group), stop, on_start, on_end)
        finally:
            free.put(group)

    Parallel(n_jobs=len(groups), backend="threading", batch_size=1)(delayed(run)(job) for job in jobs)


def _gpu_groups(launcher: JoblibConfig) -> list[str | None]:
    """Return the GPUs for each worker's jobs; None for all GPUs."""
    if launcher.gpus_per_job is None:
        assert launcher.num_workers is not None
        return [None] * launcher.num_workers
    size = launcher.gpus_per_job
    gpus = _visible_gpus()
    workers = launcher.num_workers or max(1, len(gpus) // size)
    needed = workers * size
    if needed > len(gpus):
        jobs = "1 job" if workers == 1 else f"{workers} parallel jobs"
        raise UsageError(
            f"launcher.gpus_per_job={size} for {jobs} needs {needed} GPU{'s' * (needed != 1)}; "
            f"{len(gpus)} {'is' if len(gpus) == 1 else 'are'} visible"
        )
    return [",".join(gpus[first : first + size]) for first in range(0, needed, size)]


def _visible_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [index.strip() for index in visible.split(",") if index.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _run_on_slurm(
    jobs: Sequence[Job], launcher: SlurmConfig, folder: Path, stop: Stop, on_end: OnJob
) -> None:
    """Submit the jobs to Slurm, each with the resources that its trainer needs, and wait until all have ended.

    At most ``launcher.max_parallel`` are submitted at a time, or as many as the cluster accepts.

    Raises:
        UsageError: Slurm refuses a job while none of the others is there.
    """
    from submitit.core.utils import FailedJobError

    waiting = collections.deque(jobs)
    running: list[tuple[Job, Any]] = []
    most = launcher.max_parallel
    canceled = False
    while waiting or running:
        if stop.requests and not canceled:
            canceled = True
            waiting.clear()
            for _, submission in running:
                submission.cancel()
        while waiting and len(running) < most:
            executor = _slurm_executor(launcher, folder / ".submitit")
            executor.update_parameters(**slurm_parameters(waiting[0], launcher))
            try:
                submission = executor.submit(SlurmJob(waiting[0], this_program()))
            except FailedJobError as error:
                if not running:
                    reason = " ".join(str(error).split())[:200]
                    raise UsageError(
                        f"launcher.cluster={launcher.cluster} refuses a job: {reason}"
                    ) from error
                most = len(running)  # the limit of this user's jobs
                break
            running.append((waiting.popleft(), submission))
        for job, submission in [*running]:
            if submission.done():
                running.remove((job, submission))
                settle_abandoned(job)
                on_end(job)
        time.sleep(0.1 if launcher.cluster in ("local", "debug") else 5)


class SlurmJob:
    """A job as submitit runs it: before a preemption or the time limit it is saved, and put back into the queue.

    Args:
        job: the job.
        command: command to which its overrides are appended.
    """

    def __init__(self, job: Job, command: tuple[str, ...]) -> None:
        self.job, self.command = job, command
        self._running: tuple[Stop, Future[None]] | None = None

    def __call__(self) -> None:
        """Run the job, in a thread because submitit's handler of Slurm's warning interrupts this one."""
        stop = Stop()
        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(run_job, self.job, self.command, stop, _ignore)
            self._running = stop, ended
            ended.result()

    def checkpoint(self) -> Any:
        """Stop the job's process, wait until it has saved, and return what submitit runs after requeueing."""
        import submitit

        if self._running is not None:
            stop, ended = self._running
            stop.requests += 1
            wait([ended])
        return submitit.helpers.DelayedSubmission(SlurmJob(self.job, self.command))


def slurm_parameters(job: Job, launcher: SlurmConfig) -> dict[str, Any]:
    """Return submitit's parameters for a job: Lightning needs one Slurm task per device of a node."""
    trainer = job.config["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    gpus = launcher.gpus_per_node
    if gpus is None:
        gpus = devices if trainer["accelerator"] in ("gpu", "cuda") else 0
    parameters = {
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
    return {name: value for name, value in parameters.items() if value is not None}


def _slurm_executor(launcher: SlurmConfig, folder: Path) -> Any:
    import submitit

    try:
        return submitit.AutoExecutor(folder=folder / "%j", cluster=launcher.cluster)
    except RuntimeError as reason:
        raise UsageError(f"launcher.cluster={launcher.cluster} is not available: {reason}") from reason


def _ignore(job: Job) -> None:
    """Do nothing when a job starts on another machine, where nobody would see a message."""


@contextlib.contextmanager
def _stopping() -> Iterator[Stop]:
    """Count signals instead of exiting."""
    stop = Stop()

    def count(number: int, frame: FrameType | None) -> None:
        stop.requests += 1
        if stop.requests == 1:
            stop.signal = number
            notify("\nStopping: running jobs save a checkpoint and exit. Interrupt again to stop them now.")

    with handling_signals(count):
        yield stop
