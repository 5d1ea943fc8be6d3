"""Folders of the cache: built beside their place by one process at a time, and there only when they are whole.

A folder is built under a name of its own (:func:`unfinished`), synced to the disk, and renamed
(:func:`put_in_place`). A lock lets one process build while others wait for it. Whoever holds a folder's lock may
remove or go on with what others began under that name: they must be dead.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
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


def temporary(folder: Path) -> Path:
    """A new name beside ``folder`` under which it can be built; tells which folder it was to become."""
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"


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


def put_in_place(building: Path, folder: Path) -> None:
    """Give what was built its name, once the disk has all of it; a damaged folder of that name goes."""
    _sync(building)
    if folder.exists():  # damaged, or it would have been opened
        damaged = temporary(folder)
        os.replace(folder, damaged)
        shutil.rmtree(damaged)
    os.replace(building, folder)
    _sync_folder(folder.parent)


def _sync(folder: Path) -> None:
    """Make sure that the disk has everything in ``folder``."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
