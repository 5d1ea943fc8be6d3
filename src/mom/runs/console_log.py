"""Keep what a run prints in a file of its directory, as a reader of the terminal sees it in the end."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

CONSOLE_LOG = "run.log"
"""File in a run directory with what the run printed."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CURSOR_UP = re.compile(r"\x1b\[\d*A")


@contextlib.contextmanager
def kept(path: Path, first_line: str) -> Iterator[None]:
    """Append standard output and standard error of this context to a file, without colors and redrawn lines.

    Args:
        path: the file; an error in writing to it never stops the run.
        first_line: written first, such as the command.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
            stack.callback(_close, file)
            file.write(f"{first_line}\n")
        except OSError:
            yield
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None:
                stack.enter_context(_copied(name, stream, file))
        yield


@contextlib.contextmanager
def _copied(name: str, stream: TextIO, file: TextIO) -> Iterator[None]:
    copy = Copied(stream, file)
    _redirect_logging(stream, copy)
    setattr(sys, name, copy)
    try:
        yield
    finally:
        copy.finish()
        _redirect_logging(copy, stream)
        if getattr(sys, name) is copy:
            setattr(sys, name, stream)


class Copied:
    """A text stream whose lines also go to a file: of a line that was redrawn, what it showed last.

    Args:
        stream: the stream; all attributes but :meth:`write` are its own.
        file: where the lines go.
    """

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream = stream
        self._file = file
        self._line = ""

    def write(self, text: str) -> int:
        """Write to the stream, and complete lines to the file."""
        count = self._stream.write(text)
        if not _CURSOR_UP.search(text):  # several lines are drawn again
            self._keep(text)
        return count

    def writelines(self, lines: Any) -> None:
        """Write several lines."""
        for line in lines:
            self.write(line)

    def log(self, line: str) -> None:
        """Write a line to the file only."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(f"{line}\n")

    def finish(self) -> None:
        """Write a last line without an end."""
        if self._line.strip():
            self.log(self._line.rstrip())
        self._line = ""

    def _keep(self, text: str) -> None:
        *complete, rest = (self._line + _CONTROL.sub("", text)).replace("\r\n", "\n").split("\n")
        for line in complete:
            self.log(line.rpartition("\r")[2].rstrip())
        self._line = rest.rpartition("\r")[2] if not rest.endswith("\r") else rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # the disk may be full
        file.close()


def _redirect_logging(before: IO[str] | Copied, after: IO[str] | Copied) -> None:
    """Make handlers of log messages write to another stream."""
    loggers = [logging.root, *(logging.getLogger(name) for name in ("mom", "hydra"))]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)
