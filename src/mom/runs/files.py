"""Atomic writes of files and folders: write to a temporary name, sync to disk, rename."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or the one that led to it, is a full disk or an exceeded quota.

    PyTorch reports a write that failed as an error of its archive, and safetensors only in the message.
    """
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    is_named = f"os error {errno.ENOSPC})" in str(error)
    return is_named or is_disk_full(error.__cause__ or error.__context__)


def disk_full(path: Path, needed: str) -> OSError:
    """Return the error for a full disk, which names the file, the bytes that it needs, and those that are free."""
    free = shutil.disk_usage(path.parent).free
    return OSError(
        errno.ENOSPC, f"No space left on device: {path} needs {needed} bytes, {free:,} are free", str(path)
    )


@contextmanager
def atomic_file(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """Replace a file once its new content is complete and on disk.

    Readers see the old or the new file, never a partial one. If the block raises, the old file stays.

    Args:
        path: the file; its folder must exist.
        size: bytes that it will have, if they are known, to say so on a full disk.

    Yields:
        A path in the same folder, to write the new content to.

    Raises:
        OSError: if the file cannot be written, synced, or renamed.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except Exception as error:
        if not is_disk_full(error):
            raise
        written = temporary.stat().st_size if temporary.is_file() else 0
        temporary.unlink(missing_ok=True)
        raise disk_full(path, f"more than {written:,}" if size is None else f"{size:,}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Replace a folder once its new content is complete and on disk.

    If the block raises, the old folder stays. Leftovers of a killed process are removed first, so only one process may
    write a given folder at a time.

    Args:
        folder: the folder; its parents are created.

    Yields:
        An empty folder next to it, to write the new content to.

    Raises:
        OSError: if the folder cannot be created, synced, or renamed.
    """
    folder = Path(folder)
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        yield building
        replace_folder(building, folder)
    except Exception as error:
        if not is_disk_full(error):
            raise
        written = sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
        shutil.rmtree(building, ignore_errors=True)
        raise disk_full(folder, f"more than {written:,}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def replace_folder(building: Path, folder: Path) -> None:
    """Sync a complete folder and rename it to ``folder``, replacing an old folder.

    Raises:
        OSError: if it cannot be synced or renamed.
    """
    for path in building.rglob("*"):
        sync(path)
    sync(building)
    if folder.exists():  # os.replace cannot replace a folder with content
        old = temporary_path(folder)
        os.replace(folder, old)
        os.replace(building, folder)
        shutil.rmtree(old)
    else:
        os.replace(building, folder)
    sync(folder.parent)


def temporary_path(path: Path) -> Path:
    """Return an unused hidden name in the folder of ``path``: ``.<name>.<8 hex digits>.tmp``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_temporary(folder: Path, unless: str) -> None:
    """Remove temporary files and folders that killed processes left in a folder or below.

    Args:
        folder: the folder; no other process writes to it.
        unless: folders below that hold a file of this name are left alone, because another process may write there.
    """
    for path, folders, files in os.walk(folder):
        if Path(path) != folder and unless in files:
            folders.clear()
            continue
        for name in filter(_TEMPORARY.fullmatch, files):
            (Path(path) / name).unlink(missing_ok=True)
        for name in [*filter(_TEMPORARY.fullmatch, folders)]:
            folders.remove(name)
            shutil.rmtree(Path(path) / name, ignore_errors=True)


_TEMPORARY = re.compile(r"\..+\.tmp")


def sync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a string as UTF-8 with :func:`atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: str | Path, obj: Any) -> None:
    """Write plain data as JSON with :func:`atomic_file`; NaN and infinity become null, which every reader accepts."""
    write_text_atomic(path, json.dumps(_replace_non_finite(obj), indent=2, allow_nan=False) + "\n")


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV with a header; a missing value is an empty cell, and other keys are skipped.

    Spreadsheets run a cell that begins like a formula, so a quote precedes such strings; :func:`csv_value` removes it.
    """
    text = _Lines()
    table = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
    table.writerow({name: _csv_cell(name) for name in columns})
    table.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return "".join(text)


class _Lines(list[str]):
    """Lines of a CSV file, which end in a newline.

    The writer is given its own line end, a carriage return and a newline, because it quotes cells with either of them.
    """

    def write(self, line: str) -> None:
        """Append a line."""
        self.append(line.removesuffix("\r\n") + "\n")


def csv_value(cell: str) -> str:
    """Return the string that :func:`format_csv` wrote as this cell."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip("'").startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, or nests too deeply, or has a number with thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except ValueError:  # Python's limit on the digits of an integer, whose message names a function
        raise ValueError("a number has too many digits") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file of a run; return an empty dict if it does not exist yet or is not a JSON object."""
    try:
        content = parse_json(Path(path).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _replace_non_finite(obj: Any) -> Any:
    """Return plain data with None instead of NaN and infinity."""
    if isinstance(obj, float):
        return obj if abs(obj) < float("inf") else None
    if isinstance(obj, Mapping):
        return {str(key): _replace_non_finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_replace_non_finite(value) for value in obj]
    return obj
