"""The one writer of a run directory, which refuses a second at once: a file there names its host, process, and start.

System locks (:mod:`mom.runs.lock`, for which others wait) do not serve here: many shared file systems lack them, and
they do not say who holds them. The file's time of change is a heartbeat for other hosts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mom.errors import UsageError
from mom.runs.files import read_json, temporary_path, write_text_atomic

LOCK = "run.lock"
"""File in a run directory that names the process that writes there."""

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
"""Age of the heartbeat of a process on another host, after which it counts as dead."""

_SETTLE_SECONDS = 0.2
_START_TOLERANCE_SECONDS = 5.0  # the start time is computed from the clock, which may be adjusted


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of a run.

    Args:
        host: name of the host, and on Linux the namespace of its process ids, which differs between containers.
        pid: its id there.
        started: when it started, in seconds since 1970.
        token: tells apart two locks of the same process.
    """

    host: str
    pid: int
    started: float
    token: str = ""

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        import psutil

        return cls(_this_host(), os.getpid(), psutil.Process().create_time(), secrets.token_hex(4))

    @property
    def is_here(self) -> bool:
        """Whether it runs where this process can see it."""
        return self.host == _this_host()

    @property
    def has_died(self) -> bool:
        """Whether it ran here and has ended."""
        import psutil

        if not self.is_here:
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _START_TOLERANCE_SECONDS
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        """Return ``process 12 on host``."""
        return f"process {self.pid} on {self.host.partition(' ')[0]}"


@contextlib.contextmanager
def own(folder: Path, option: str = "run_dir") -> Iterator[None]:
    """Own an existing folder, so that no other process writes there.

    The lock of a dead process is taken over: on this host as soon as it has died, on another when its heartbeat is
    :data:`STALE_SECONDS` old.

    Args:
        folder: the folder.
        option: the option that names it, for the error.

    Raises:
        UsageError: another process owns it.
        OSError: the lock cannot be written.
    """
    path = folder / LOCK
    me = Process.current()
    _acquire(path, me, option)
    stopped = threading.Event()
    threading.Thread(target=_beat, args=(path, stopped), daemon=True).start()
    try:
        yield
    finally:
        stopped.set()
        if _read(path) == me:
            path.unlink(missing_ok=True)


def owner_has_died(folder: Path) -> bool:
    """Return whether a process owned this folder and died; false if there is no lock."""
    path = folder / LOCK
    return path.exists() and not _is_alive(path)


def _acquire(path: Path, me: Process, option: str) -> None:
    record = json.dumps(dataclasses.asdict(me)) + "\n"
    temporary = temporary_path(path)
    temporary.write_text(record, encoding="utf-8")
    try:
        if _create(temporary, path):
            return
        if _is_alive(path):
            raise _in_use(path, option)
        # If several processes take over at once, the last to replace the lock owns the folder.
        write_text_atomic(path, record)
        time.sleep(_SETTLE_SECONDS)
        if _read(path) != me:
            raise _in_use(path, option)
    finally:
        temporary.unlink(missing_ok=True)


def _create(temporary: Path, path: Path) -> bool:
    """Give a file another name, unless that exists; atomic also on network file systems."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(temporary.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _is_alive(path: Path) -> bool:
    """Return whether the process that a lock names is alive; if it runs elsewhere, by its heartbeat."""
    owner = _read(path)
    if owner is not None and owner.is_here:
        return not owner.has_died
    probe = temporary_path(path)  # tells the time by the clock of the file system
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _read(path: Path) -> Process | None:
    with contextlib.suppress(TypeError):
        return Process(**read_json(path))
    return None


def _in_use(path: Path, option: str) -> UsageError:
    owner = _read(path)
    if owner is None:
        who = "another process"
    else:
        since = datetime.datetime.fromtimestamp(owner.started).strftime("%Y-%m-%d %H:%M:%S")
        who = f"{owner}, started {since}"
    return UsageError(
        f"{option} {path.parent} is in use by {who}; wait until it ends, or choose another directory"
    )


def _beat(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _this_host() -> str:
    try:
        namespace = f" {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        namespace = ""
    return socket.gethostname() + namespace
