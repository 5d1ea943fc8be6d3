"""Signals that ask a process to stop: Ctrl-C, a closed terminal, a cluster's warning, a request to terminate."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Signals that stop a run; SIGUSR1 is what SLURM sends before the time is over (``--signal=USR1@60``)."""

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """A signal stopped the process.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal stopped, as shells report it: 128 + n."""
    return 128 + number


def handle_signals(handler: Handler | signal.Handlers) -> dict[int, Any]:
    """Set a handler for :data:`SIGNALS`, but not for those that the process ignores, as under ``nohup``.

    Returns:
        The previous handlers; empty outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def restore_signals(previous: dict[int, Any]) -> None:
    """Set the handlers that :func:`handle_signals` returned."""
    for number, handler in previous.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def handling_signals(handler: Handler) -> Iterator[None]:
    """Handle :data:`SIGNALS` in a context."""
    previous = handle_signals(handler)
    try:
        yield
    finally:
        restore_signals(previous)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise :class:`Interrupted`; a handler of signals."""
    raise Interrupted(number)


def ignore_signals() -> None:
    """Ignore :data:`SIGNALS` from now on, to record how the process ended."""
    handle_signals(signal.SIG_IGN)


def notify(message: str) -> None:
    """Print a line from a handler of signals; ``print`` fails there if the signal arrived within a ``print``."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, f"{message}\n".encode())
