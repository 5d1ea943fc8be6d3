"""Handle Ctrl-C and SIGTERM: the first stops training after the current step, the second at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch.utilities.exceptions import SIGTERMException

from mom.console import announce

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context in which the first SIGINT or SIGTERM only sets :attr:`requested`; the second interrupts at once.

    A checkpoint taken during an optimizer step would contain half an update, so the training loop checks
    :attr:`requested` between steps, saves, and raises ``KeyboardInterrupt``.

    On exit the previous handlers are restored, and an interruption that Lightning turned into ``SystemExit`` (it
    also leaves SIGINT ignored) is raised as ``KeyboardInterrupt`` again. Does nothing outside the main thread, where
    Python handles no signals.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        announce("\nInterrupted: finishing the current step, then saving. Interrupt again to stop now.")
