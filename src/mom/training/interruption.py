"""Handle signals in training: the first stops it after the current step, the second at once."""

from __future__ import annotations

from types import FrameType, TracebackType
from typing import Any, Self

from mom.runs.signals import Interrupted, handle_signals, notify, restore_signals


class Interruption:
    """A context in which the first signal only sets :attr:`requested`; the second interrupts at once.

    A checkpoint taken during an optimizer step would contain half an update, so the training loop checks
    :attr:`requested` between steps, saves, and raises :class:`Interrupted`.

    On exit the previous handlers are restored, and an interruption that Lightning turned into ``SystemExit`` (it
    also leaves SIGINT ignored) is raised again. Does nothing outside the main thread, where Python handles no signals.

    Attributes:
        requested: number of the signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._previous_handlers = handle_signals(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore_signals(self._previous_handlers)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise Interrupted(number)
        self.requested = number
        notify("\nInterrupted: finishing the current step, then saving. Interrupt again to stop now.")
