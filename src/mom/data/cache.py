"""Folders of the cache: built by one process at a time, and visible only once they are complete.

A folder is built under another name (:func:`unfinished`) and renamed by :func:`mom.runs.files.replace_folder`. While
one process holds its lock and builds, the others wait. The holder of the lock may remove or continue unfinished work
of that folder, because the process that began it must be dead.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from mom.errors import UsageError
from mom.runs.lock import folder_lock

if TYPE_CHECKING:
    from mom.config import DataConfig

log = logging.getLogger(__name__)

# An unfinished preparation that nobody resumed is removed after this time.
UNFINISHED_SECONDS = 7 * 24 * 3600


def cache_folder(config: DataConfig) -> Path:
    """Return the cache: ``data.cache_dir``, else ``$MOM_CACHE``, else ``~/.cache/mom``."""
    return Path(config.cache_dir or os.environ.get("MOM_CACHE") or "~/.cache/mom").expanduser()


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn errors of writing the cache into a :class:`~mom.errors.UsageError` that names the option."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(f"cannot write to data.cache_dir {cache}: {error.strerror or error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, waiting for other processes."""
    lock = folder_lock(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("waiting for another process that is preparing %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def unfinished(folder: Path) -> Path:
    """Return the folder in which ``folder`` is built; its name is fixed, so that the work can be resumed."""
    return folder.parent / f".{folder.name}.part"


def remove_unfinished(folder: Path) -> None:
    """Remove leftovers of dead processes from the cache. The caller holds the lock of ``folder``.

    Work that can be resumed is kept: that of ``folder`` itself, and that of other folders for a week.
    """
    old = time.time() - UNFINISHED_SECONDS
    others = [part for part in folder.parent.glob(".*.part") if part != unfinished(folder)]
    abandoned = [part for part in others if part.stat().st_mtime < old]
    for leftover in [*folder.parent.glob(".*.tmp"), *abandoned]:
        name = leftover.name.split(".")[1]
        if name == folder.name:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        try:
            with folder_lock(folder.parent / name).acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except filelock.Timeout:
            pass  # another process is building it
