"""Where a model's weights may come from, checked without PyTorch."""

from __future__ import annotations

from pathlib import Path

from mom.errors import UsageError
from mom.runs.directory import CHECKPOINTS

_USUAL = ("last.ckpt", "best.ckpt")
SOURCES = "a checkpoint (.ckpt) of a run, an exported folder, a GPT-2, Llama or Qwen3 folder, or a Hub id"
"""What weights can be read from, for errors."""


def check_source(source: str | Path, option: str = "init") -> None:
    """Check that a file or folder of weights exists, unless ``source`` may be the id of a model on the Hub.

    Raises:
        UsageError: there is no such file or folder, or the folder has no model in it.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        found = next(
            (path / CHECKPOINTS / name for name in _USUAL if (path / CHECKPOINTS / name).is_file()), None
        )
        hint = (
            "the folder has no config.json" if found is None else f"a run directory; its weights are {found}"
        )
        raise UsageError(f"{option} must be {SOURCES}, got {source}: {hint}")
    if not path.exists() and (path.suffix == ".ckpt" or path.is_absolute() or str(source).startswith(".")):
        raise UsageError(f"{option} must be {SOURCES}, got {source}: no such file or folder")
