"""Processes of their own that need not import the libraries: those of a sweep's jobs, which are like fresh ones."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mom.sweeps.worker import ForkedProcess

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join((str(ROOT / "src"), str(ROOT)))


@dataclasses.dataclass(frozen=True)
class Ended:
    """Exit code of a process (negative: the signal), and its output and errors."""

    code: int
    output: str


def start(line: Sequence[str], folder: Path, output: Path, **variables: str) -> ForkedProcess:
    """Start a process in a folder; ``tests/sweeps/test_worker.py`` compares such a process with a fresh one.

    Args:
        line: a Python file, or ``-m`` and a module, and its arguments.
        folder: its working folder.
        output: the file for its output.
        variables: environment variables, added to those of this process.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS} | variables
    with contextlib.chdir(folder), output.open("wb") as file:
        return ForkedProcess(list(line), file.fileno(), environment, imports=["mom.tasks.pretrain"])


def wait_for_all(processes: Mapping[Path, ForkedProcess], timeout: float = 600) -> list[Ended]:
    """Wait for processes, given by the files of their output, and return how they ended.

    Raises:
        TimeoutError: one of them ran for too long; all of them are killed.
    """
    try:
        codes = [process.wait(timeout) for process in processes.values()]
    finally:
        for process in processes.values():
            process.kill()
    outputs = [output.read_text(encoding="utf-8", errors="replace") for output in processes]
    return [Ended(code, output) for code, output in zip(codes, outputs, strict=True)]


def run(line: Sequence[str], folder: Path, output: Path, **variables: str) -> Ended:
    """Start a process, wait for its end, and return how it ended; see :func:`start`."""
    (ended,) = wait_for_all({output: start(line, folder, output, **variables)})
    return ended
