"""Files of a run, written completely or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json_atomic(path: str | Path, obj: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        obj: plain data. NaN and infinity become null, which every JSON reader accepts.

    Raises:
        OSError: if it cannot be written; the old file is untouched.
    """
    write_text_atomic(Path(path), json.dumps(_finite(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file of a run; nothing where it is not there (yet), or is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text in UTF-8 beside the file, flush to the disk, rename over it.

    Raises:
        OSError: if it cannot be written; the old file is untouched.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; give this one the permissions any other file would have.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finite(obj: Any) -> Any:
    """Plain data with NaN and infinity replaced by None."""
    if isinstance(obj, float):
        return obj if abs(obj) < float("inf") else None
    if isinstance(obj, Mapping):
        return {str(key): _finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
    return obj
