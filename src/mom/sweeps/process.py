"""One job of a sweep, carried out in a process of its own."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mom.runs.directory import RunDirectory, holds_checkpoints, process_rank
from mom.runs.lock import hold
from mom.sweeps.jobs import Job

OUTPUT = "output.txt"
"""File in a job's run directory with everything its process printed."""

_POLL_SECONDS = 0.1


@dataclasses.dataclass
class Stop:
    """How often the sweep was asked to stop: once lets jobs save and end, twice ends them, a third time kills."""

    requests: int = 0


def run_job(job: Job, command: tuple[str, ...], stop: Stop, started: Callable[[Job], None]) -> None:
    """Bring a job to an end, unless it has one: start it, or go on where an earlier attempt was interrupted.

    The job's lock is held meanwhile, by the job's process too. Another sweep in the same folder, or one started
    again after this one was killed, so waits for the process that is left, and then sees what became of it.

    Args:
        job: the job; its ``status.json`` tells afterwards how it ended.
        command: what starts the command line, in front of the overrides.
        stop: looked at all the time.
        started: called once the job's process runs.
    """
    if process_rank() > 0:  # one of several that Slurm started for this job; the first sees to the folder
        job.folder.mkdir(parents=True, exist_ok=True)
        _wait(_start(job, command, _overrides(job)), stop)
        return
    with hold(job.folder, lambda: stop.requests > 0) as descriptors:
        if descriptors is None or stop.requests or job.state == "succeeded":
            return
        overrides = _overrides(job)
        if not job.resumes and job.folder.exists():
            shutil.rmtree(job.folder)  # half of what cannot be resumed would be mixed with the new attempt
        job.folder.mkdir(parents=True, exist_ok=True)
        # A process that ends before it can say how must not leave the state of the attempt before.
        (job.folder / "status.json").unlink(missing_ok=True)
        process = _start(job, command, overrides, descriptors)
        try:
            started(job)
            code = _wait(process, stop)
        except BaseException:
            process.terminate()  # the lock must not be released while the job still writes its folder
            process.wait()
            raise
        _settle(job, code, stopped=stop.requests > 0)


def settle_abandoned(job: Job) -> None:
    """Mark a job whose process is gone without having said how it ended."""
    with hold(job.folder, lambda: True) as descriptors:
        if descriptors is not None and job.state == "running":
            RunDirectory(job.folder).status("interrupted", "its process is gone")


def this_program() -> tuple[str, ...]:
    """Return the command that starts the running program, with its ``--config-dir`` if it has one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    added = parser.parse_known_args(sys.argv[1:])[0].config_dir
    flags = ("--config-dir", added) if added else ()
    return (sys.executable, os.path.abspath(sys.argv[0]), *flags)


def _overrides(job: Job) -> list[str]:
    """The overrides of the job's process: those of the job, one run of them, its folder, and where to go on."""
    overrides = [*job.overrides, "hydra.mode=RUN", "hydra.sweeper.params=null"]
    if "search" in job.config:
        overrides.append("search=null")
    overrides.append(f"run_dir={_quoted(job.folder)}")
    if job.resumes and holds_checkpoints(job.folder):
        overrides += ["ckpt=null", "resume=auto"]
    return overrides


def _start(
    job: Job, command: tuple[str, ...], overrides: list[str], kept_open: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start the job's process, what it prints going to a file."""
    with (job.folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [*command, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(job),
            start_new_session=True,  # the terminal's Ctrl-C reaches the sweep alone, which passes it on
            pass_fds=kept_open,
        )


def _quoted(value: object) -> str:
    """A text that Hydra's grammar reads as it is."""
    return "'" + str(value).replace("'", "\\'") + "'"


def _environment(job: Job) -> dict[str, str]:
    if job.devices is None:
        return dict(os.environ)
    return os.environ | {"CUDA_VISIBLE_DEVICES": job.devices}


def _wait(process: subprocess.Popen[bytes], stop: Stop) -> int:
    """Wait for the process, passing on each request to stop; returns its exit code (negative: the signal)."""
    passed_on = 0
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.requests > passed_on:
                passed_on += 1
                process.terminate() if passed_on < 3 else process.kill()


def _settle(job: Job, code: int, *, stopped: bool) -> None:
    """Write how a job ended where its process did not."""
    if job.state not in ("waiting", "running"):
        return
    state: Literal["interrupted", "failed"] = (
        "interrupted" if stopped or code == -signal.SIGTERM else "failed"
    )
    RunDirectory(job.folder).status(state, None if stopped else _last_words(job.folder, code))


def _last_words(folder: Path, code: int) -> str:
    """The last line of a process that ended badly, behind how it ended."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.rpartition("\r")[2].strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last}" if last else how
