"""Ctrl-C and SIGTERM: first a request to stop after the step under way, then an order to stop now."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, the first SIGINT or SIGTERM only sets :attr:`requested`; the second interrupts at once.

    A checkpoint taken in the middle of an optimizer step would hold half an update, so whoever trains looks
    at :attr:`requested` between steps, saves, and raises ``KeyboardInterrupt``.

    On leaving, the handlers from before are back, and an interruption that Lightning turned into
    ``SystemExit`` (it also leaves SIGINT ignored) comes out as the ``KeyboardInterrupt`` it was. Outside the
    main thread Python handles no signals and nothing is requested.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        _tell("\nInterrupted: finishing the step under way, then saving. Once more stops at once.")


@rank_zero_only
def _tell(message: str) -> None:
    print(message, flush=True)
