"""Locks for which others wait: on folders of the cache while one is built, and on a sweep's job while it runs.

The system releases a lock when its last holder exits, even if killed; the process of a job inherits it. A run directory
has another, :mod:`mom.runs.owner`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

_POLL_SECONDS = 0.1


def folder_lock(folder: Path, on_acquired: Callable[[int], None] | None = None) -> filelock.FileLock:
    """Return the lock of a folder, which need not exist: a file next to it, which is never removed.

    ``on_acquired`` is called with the lock's file descriptor.
    """
    return filelock.FileLock(folder.with_name(f".{folder.name}.lock"), on_acquired=on_acquired)


@contextlib.contextmanager
def hold(folder: Path, should_stop: Callable[[], bool]) -> Iterator[tuple[int, ...] | None]:
    """Acquire and hold the lock of a folder, which need not exist.

    A child process started with the descriptors (``subprocess.Popen(pass_fds=…)``) holds the lock too, and keeps it if
    this process is killed. Windows cannot pass descriptors, so there only this process holds the lock.

    Args:
        folder: the folder.
        should_stop: called while another process holds the lock; true gives up. At least one attempt is made.

    Yields:
        The descriptors for the child process, or None if the lock was not acquired.
    """
    descriptors: list[int] = []
    lock = folder_lock(folder, descriptors.append)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(poll_interval=_POLL_SECONDS, cancel_check=should_stop)
    inherited = tuple(descriptors) if os.name == "posix" else ()
    try:
        yield inherited if lock.is_locked else None
    finally:
        lock.release()
