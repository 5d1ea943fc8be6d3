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

from mom.errors import RequestError
from mom.runs.lock import folder_lock

if TYPE_CHECKING:
    from mom.config import DataConfig

log = logging.getLogger(__name__)

# An unfinished preparation that nobody went on with is removed after so many seconds.
UNFINISHED_SECONDS = 7 * 24 * 3600


def cache_folder(config: DataConfig) -> Path:
    """The cache: ``data.cache_dir``, else ``$MOM_CACHE``, else ``~/.cache/mom``."""
    return Path(config.cache_dir or os.environ.get("MOM_CACHE") or "~/.cache/mom").expanduser()


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Tell the user which option is at fault when the cache cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(
            "data.cache_dir", cache, f"a folder that can be written, with room for the tokens ({reason})"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    lock = folder_lock(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("another process is preparing %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def unfinished(folder: Path) -> Path:
    """Where ``folder`` is built, the same name every time, so that it can be gone on with."""
    return folder.parent / f".{folder.name}.part"


def remove_unfinished(folder: Path) -> None:
    """Remove what dead processes left in the cache. The caller holds the lock of ``folder``.

    What can be gone on with stays: that of ``folder`` itself, and that of others for a week.
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
            pass  # someone is at work there
