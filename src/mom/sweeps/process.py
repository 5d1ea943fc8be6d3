"""Run one job of a sweep in its own process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mom.runs.directory import STATUS, RunDirectory, has_recorded_end, holds_checkpoints, process_rank
from mom.runs.lock import hold
from mom.runs.program import config_dir_flags, restart
from mom.sweeps.jobs import Job
from mom.sweeps.worker import ForkedProcess

OUTPUT = "output.txt"
"""File in a job's run directory with the output of its process."""

_POLL_SECONDS = 0.1

_PLOTS = [f"mom.plots.{name}" for name in ("depth", "routing", "rules", "training")]
"""Modules that jobs with figures import at their end."""

Process = subprocess.Popen[bytes] | ForkedProcess


@dataclasses.dataclass
class Stop:
    """Number of requests to stop the sweep: at the first, jobs save and exit; at the third, they are killed.

    Args:
        requests: their number.
        signal: number of the signal that was the first; 0 if there was none.
    """

    requests: int = 0
    signal: int = 0


def run_job(job: Job, command: tuple[str, ...], stop: Stop, started: Callable[[Job], None]) -> None:
    """Run a job unless it has already succeeded: start it, or resume an interrupted attempt.

    The sweep and the job's process hold the job's lock while it runs. A second sweep in the same directory, such as
    this one restarted after it was killed, therefore waits for the remaining process and then reads its result.

    Args:
        job: the job; its ``status.json`` records how it ended.
        command: command to which the overrides are appended.
        stop: requests to stop, polled while the job runs.
        started: called once the job's process runs.
    """
    if process_rank() > 0:
        # Slurm started several processes for this job. Only rank 0 touches the directory, which it may have to empty;
        # the output of the others goes to their logs of Slurm.
        _wait(_start(job, [*command, *_overrides(job)], None), stop)
        return
    with hold(job.folder, lambda: stop.requests > 0) as descriptors:
        if descriptors is None or stop.requests or job.state == "succeeded":
            return
        line = [*command, *_overrides(job)]
        if not job.resumes and job.folder.exists():
            # The attempt cannot be resumed, and its results would mix with the new ones.
            shutil.rmtree(job.folder)
        job.folder.mkdir(parents=True, exist_ok=True)
        # A process that dies without a status must not leave the status of an earlier attempt.
        (job.folder / STATUS).unlink(missing_ok=True)
        with (job.folder / OUTPUT).open("ab") as output:
            process = _start(job, line, output, descriptors)
        try:
            started(job)
            code = _wait(process, stop)
        except BaseException:
            process.terminate()  # the lock must not be released while the job still writes
            process.wait()
            raise
        _settle(job, code, stopped=stop.requests > 0)


def settle_abandoned(job: Job) -> None:
    """Mark a job as interrupted if its process died without recording how it ended."""
    with hold(job.folder, lambda: True) as descriptors:
        started = (job.folder / STATUS).exists()
        if descriptors is not None and started and not has_recorded_end(job.folder):
            RunDirectory(job.folder).status("interrupted", "its process died")


def this_program() -> tuple[str, ...]:
    """Return the command that starts the running program, with its ``--config-dir`` if it has one."""
    return (*restart(), *config_dir_flags())


def _overrides(job: Job) -> list[str]:
    """Return the overrides for the job's process: the job's own, without a sweep, with its directory and ``resume``."""
    overrides = [*job.overrides, "hydra.mode=RUN", "hydra.sweeper.params=null"]
    if "search" in job.config:
        overrides.append("search=null")
    quoted = str(job.folder).replace("'", "\\'")
    overrides.append(f"run_dir='{quoted}'")
    if job.resumes and holds_checkpoints(job.folder):
        overrides += ["ckpt=null", "resume=auto"]
    return overrides


def _start(job: Job, line: list[str], output: IO[bytes] | None, kept_open: tuple[int, ...] = ()) -> Process:
    """Start the job's process, writing its output to a file; ``None`` is that of this process.

    A Python program is forked from a process that has imported the libraries, anything else is started afresh.
    """
    devices = {} if job.devices is None else {"CUDA_VISIBLE_DEVICES": job.devices}
    is_program = line[0] == sys.executable and (line[1] == "-m" or Path(line[1]).is_file())
    if output is not None and is_program and "forkserver" in multiprocessing.get_all_start_methods():
        imports = [f"mom.tasks.{job.config['task']['name']}"] if "task" in job.config else []
        if job.config.get("callbacks", {}).get("figures"):
            imports += _PLOTS
        return ForkedProcess(line[1:], output.fileno(), os.environ | devices, kept_open, imports)
    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env=os.environ | devices,
        start_new_session=True,  # Ctrl-C in the terminal reaches only the sweep, which forwards it
        pass_fds=kept_open,
    )


def _wait(process: Process, stop: Stop) -> int:
    """Wait for the process, forwarding requests to stop; return its exit code (negative: the signal)."""
    forwarded = 0
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except (subprocess.TimeoutExpired, TimeoutError):
            if stop.requests > forwarded:
                forwarded += 1
                process.terminate() if forwarded < 3 else process.kill()


def _settle(job: Job, code: int, *, stopped: bool) -> None:
    """Record how a job ended if its process did not do so itself."""
    if not has_recorded_end(job.folder):
        RunDirectory(job.folder).status(
            "interrupted" if stopped or code == -signal.SIGTERM else "failed",
            None if stopped else _failure(job.folder, code),
        )


def _failure(folder: Path, code: int) -> str:
    """Describe how a process failed: the exit code or signal, and its last line of output."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.rpartition("\r")[2].strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last}" if last else how
