"""A line of progress: redrawn in a terminal, printed once a minute elsewhere and in the run's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from mom.console import can_redraw
from mom.runs.console_log import Copied

T = TypeVar("T")

SECONDS_BEFORE = 2.0
"""A step that takes no longer shows no line."""
SECONDS_BETWEEN = 60.0
"""Time between two lines where nothing can be redrawn."""

_SHORTEST_BAR, _LONGEST_BAR = 8, 24


class ProgressLine:
    """The progress of one step, on one line that fits the terminal.

    Args:
        label: what is done, such as ``evaluating``.
        total: number of parts; None if it is not known.
        done: parts done before.
        delay: seconds before the line appears.
        enabled: whether to show anything.
        clock: returns the time in seconds.
        is_kept: whether the finished line stays in the terminal.
        form: formats a number of parts.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        done: int = 0,
        *,
        delay: float = SECONDS_BEFORE,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        is_kept: bool = False,
        form: Callable[[int], str] = "{:,}".format,
    ) -> None:
        self.label = label
        self.total = total
        self.done = done
        self.numbers: Sequence[str] = ()
        self.seconds_left: float | None = None
        self._first = done
        self._clock = clock
        self._start = clock()
        self._delay = delay
        self._enabled = enabled
        self._is_kept = is_kept
        self._form = form
        self._printed = self._start
        self._live: Progress | None = None

    def update(
        self, done: int, numbers: Sequence[str] | None = None, seconds_left: float | None = None
    ) -> None:
        """Show that ``done`` parts are done.

        Args:
            done: their number.
            numbers: shown after the bar, the most important first; None keeps those of the last call.
            seconds_left: time left; None is computed from the mean time of the parts so far.
        """
        self.done = done
        self.numbers = self.numbers if numbers is None else numbers
        now = self._clock()
        self.seconds_left = self._estimate(now) if seconds_left is None else seconds_left
        if not self._enabled or now - self._start < self._delay:
            return
        if self._live is None and can_redraw(sys.stdout):
            self._live = Progress(
                _Line(self),
                console=Console(file=sys.stdout, force_terminal=True),
                transient=not self._is_kept,
            )
            self._live.add_task(self.label, total=None)
            self._live.start()
        if now - self._printed >= SECONDS_BETWEEN:
            self.report()

    def advance(self, parts: int) -> None:
        """Show that so many more parts are done."""
        self.update(self.done + parts)

    def report(self) -> None:
        """Print a line now, but in a terminal only to the run's log."""
        if not self._enabled:
            return
        self._printed = self._clock()
        if self._live is None and not can_redraw(sys.stdout):
            print(self.text(), flush=True)
            return
        stream = cast(Any, sys.stdout if self._live is None else self._live.console.file)
        if isinstance(stream, Copied):
            stream.log(self.text())

    def print(self, text: str) -> None:
        """Print above the line."""
        if self._live is not None:
            self._live.console.print(text)
        else:
            print(text)

    def close(self) -> None:
        """Release the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def text(self, width: int | None = None) -> str:
        """Return the line: with a bar if ``width`` is given, and then with the numbers for which there is room."""
        count = "/".join(self._form(number) for number in (self.done, self.total) if number is not None)
        left = (
            ""
            if self.seconds_left is None or self.done == self.total
            else f"{duration(self.seconds_left)} left"
        )
        parts = [self.label, count, *self.numbers, *filter(None, [left])]
        if width is None:
            return "  ".join(parts)
        room = width - _SHORTEST_BAR - 2
        numbers = list(self.numbers)
        while numbers and len("  ".join([self.label, count, *numbers, *filter(None, [left])])) > room:
            numbers.pop()
        shown = "  ".join([*numbers, *filter(None, [left])])
        start = f"{self.label}  {count}"
        bar = min(_LONGEST_BAR, width - len(start) - len(shown) - 4)
        if self.total is None or bar < 1:
            return f"{start}  {shown}"[:width]
        filled = bar if self.total == 0 else round(bar * min(1.0, self.done / self.total))
        return f"{start}  {'━' * filled}{'─' * (bar - filled)}  {shown}".rstrip()

    def _estimate(self, now: float) -> float | None:
        parts = self.done - self._first
        if self.total is None or parts <= 0:
            return None
        return (now - self._start) / parts * (self.total - self.done)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Line(ProgressColumn):
    """The one column of rich's bar."""

    def __init__(self, line: ProgressLine) -> None:
        super().__init__()
        self._line = line

    def render(self, task: Task) -> Text:
        live = self._line._live
        width = 80 if live is None else live.console.width
        return Text(self._line.text(width - 1), no_wrap=True, overflow="crop")


def track(items: Iterable[T], label: str, total: int | None, *, enabled: bool = True) -> Iterator[T]:
    """Yield items, with a line of progress if they take longer than :data:`SECONDS_BEFORE`."""
    with ProgressLine(label, total, enabled=enabled) as line:
        for number, item in enumerate(items, start=1):
            yield item
            line.update(number)


def duration(seconds: float) -> str:
    """Return a time as ``0:45``, ``1:02:03``, or ``2 d 3 h``."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
