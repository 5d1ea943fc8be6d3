"""Processes for the jobs of a sweep: forked from a server that has imported the libraries once.

The server is Python's :mod:`multiprocessing.forkserver`. It imports and does nothing else: no job runs in it, it starts
no threads, and it does not touch a GPU. A forked process therefore is like a fresh one, and gets its own session,
environment, directory, output, and arguments before it runs the program as ``__main__``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from typing import Any

from mom.runs.signals import SIGNALS

LIBRARIES = ("torch", "lightning.pytorch", "transformers.modeling_utils")
"""Libraries that the server imports if the sweep did, to check its jobs."""

_lock = threading.Lock()


class ForkedProcess:
    """A process with the interface of ``subprocess.Popen`` that :mod:`mom.sweeps.process` uses.

    Args:
        line: the program, a Python file or ``-m`` and a module, and its arguments.
        output: descriptor of the file for the standard output and error.
        environment: environment variables.
        kept_open: descriptors that the process keeps open, such as that of a lock.
        imports: modules that the server imports too, if the sweep has imported any of :data:`LIBRARIES`.
    """

    def __init__(
        self,
        line: list[str],
        output: int,
        environment: Mapping[str, str],
        kept_open: Iterable[int] = (),
        imports: Iterable[str] = (),
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        descriptors = _Descriptors([output, *kept_open])
        with _lock, _without_main():
            libraries = [name for name in LIBRARIES if name in sys.modules]
            context.set_forkserver_preload(["mom.cli", *libraries, *(imports if libraries else ())])
            self._process: ForkServerProcess = context.Process(
                target=_run, args=(line, dict(environment), descriptors)
            )
            self._process.start()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code (negative: the signal).

        Raises:
            TimeoutError: it has not ended.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError
        return self._process.exitcode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


class _Descriptors:
    """Descriptors that are duplicated for the process to which they are sent."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, ([DupFd(descriptor) for descriptor in self.descriptors],)


def _received(descriptors: list[Any]) -> list[int]:
    return [descriptor.detach() for descriptor in descriptors]


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide this program from multiprocessing, which would run it in every process under another name."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _run(line: list[str], environment: dict[str, str], descriptors: list[int]) -> None:
    """Run a program as a fresh process would."""
    output, *_ = descriptors
    os.setsid()  # Ctrl-C in the terminal reaches only the sweep, which forwards it
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator is seeded by each fork
    module = line[1] if line[0] == "-m" else None
    sys.argv = line[1:] if module else line
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(line[0], run_name="__main__")
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them
