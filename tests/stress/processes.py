"""Run the command line in forked processes that end themselves by a signal at a chosen moment of their life.

A moment is a file of the run directory that is opened, renamed, linked, or removed, a directory that is made, or a
training step: all points between which a killed process leaves different files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mom.runs.files import read_json
from mom.runs.owner import LOCK

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 600
GRACE_SECONDS = 20
"""Time in which the other ranks may end by themselves after one has died."""

_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended.

    Args:
        code: its exit code; negative if a signal killed it.
        moments: how many moments it has lived.
        output: its output.
    """

    code: int
    moments: int
    output: str


@dataclasses.dataclass(frozen=True)
class Blow:
    """A signal that a process sends itself.

    Args:
        number: the signal.
        moment: after how many moments.
        rank: rank of the process.
    """

    number: int
    moment: int
    rank: int = 0


def load() -> None:
    """Import what a run imports, so that forked processes need not."""
    import mom.cli
    import mom.tasks.finetune
    import mom.tasks.pretrain

    assert mom.cli and mom.tasks.finetune and mom.tasks.pretrain


class JobKiller:
    """Kills the process of a sweep's job a while after the job has written a file.

    Args:
        job: the job's run directory.
        name: the file.
        delay: seconds.
    """

    def __init__(self, job: Path, name: str, delay: float) -> None:
        self.job, self.name, self.delay = job, name, delay
        self.has_struck = False
        self._due: float | None = None

    def __call__(self) -> None:
        """Strike if it is time and the job runs."""
        if self.has_struck or not (self.job / self.name).exists():
            return
        self._due = self._due or time.monotonic() + self.delay
        owner = read_json(self.job / LOCK)
        if time.monotonic() >= self._due and "pid" in owner:
            self.has_struck = True
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(owner["pid"], signal.SIGKILL)


def run(
    line: Sequence[str],
    folder: Path,
    blow: Blow | None = None,
    world_size: int = 1,
    watch: Callable[[], None] = lambda: None,
) -> list[End]:
    """Run a request to its end, and return how each rank ended.

    Args:
        line: the overrides.
        folder: the run directory; its name with a suffix is where output and moments are written.
        blow: strikes one of the ranks.
        world_size: number of processes, started as by torchrun.
        watch: called again and again while they run.
    """
    from tests.distributed.launch import free_port

    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    shared |= {"LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "stress"}
    children = []
    for rank in range(world_size):
        variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
        strikes = blow if blow is not None and blow.rank == rank else None
        children.append(_fork(line, folder, _log(folder, rank), variables, strikes))
    codes = {}
    deadline = time.monotonic() + TIMEOUT_SECONDS
    first = 0.0
    while len(codes) < len(children) and time.monotonic() < deadline:
        if any(codes.values()):  # torchrun would end the others
            first = first or time.monotonic()
            waited = time.monotonic() - first
            for rank, child in enumerate(children):
                if rank not in codes and waited > GRACE_SECONDS:
                    os.kill(child, signal.SIGTERM if waited < 2 * GRACE_SECONDS else signal.SIGKILL)
        for rank, child in enumerate(children):
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        watch()
        time.sleep(0.05)
    for rank, child in enumerate(children):
        if rank not in codes:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"rank {rank} did not end:\n{_log(folder, rank).read_text()[-3000:]}")
    ends = []
    for rank in range(world_size):
        lived = _log(folder, rank).with_suffix(".moments")
        ends.append(End(codes[rank], lived.stat().st_size, _log(folder, rank).read_text(errors="replace")))
    return ends


def _log(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}-{rank}.txt")


def _fork(
    line: Sequence[str], folder: Path, log: Path, variables: Mapping[str, str], blow: Blow | None
) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(variables)
        sys.argv = [str(ROOT / "run.py"), *line]
        _count_moments(folder, log.with_suffix(".moments"), blow)
        from mom.cli import main

        code = main(ROOT / "conf")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count_moments(folder: Path, counter: Path, blow: Blow | None) -> None:
    """Count this process's moments, as bytes of a file, and strike when there are enough."""
    from mom.training.module import TrainingModule

    count = 0
    inside = str(folder)
    file = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def live() -> None:
        nonlocal count
        count += 1
        os.write(file, b".")
        if blow is not None and count == blow.moment:
            os.kill(os.getpid(), blow.number)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS and arguments and inside in str(arguments[0]):
            live()

    step = TrainingModule.training_step

    def training_step(self: TrainingModule, *given: object) -> object:
        live()
        return step(self, *given)

    TrainingModule.training_step = training_step  # type: ignore[method-assign, assignment]
    sys.addaudithook(hear)
