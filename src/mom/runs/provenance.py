"""Provenance of a run: the version of the code, the installed libraries, and the fingerprint of the data."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from mom import __version__
from mom.runs.program import recorded_command

LIBRARIES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "hydra-core", "numpy")


def provenance(data: object = None) -> dict[str, Any]:
    """Return a description of a run's code, environment, and data for the loggers, as plain values.

    Args:
        data: a data module, which may have a ``fingerprint``.

    Returns:
        ``code``: the ``version`` of ``mom``, the git ``commit`` of its sources, and whether they are ``modified``
        (both null outside a repository); ``environment``: Python, libraries, system, and devices; ``data``: the
        ``fingerprint`` of the corpus, or null.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "code": {"version": __version__, **_commit(Path(__file__).parent)},
        "environment": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
            "system": f"{platform.system()} {platform.machine()}",
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "devices": torch.cuda.device_count() if cuda else 1,
        },
        "data": {"fingerprint": getattr(data, "fingerprint", None)},
    }


def start_of_run() -> dict[str, Any]:
    """Return the content of ``provenance.json``, without importing PyTorch.

    Returns:
        ``command`` as it was typed, the ``version`` of ``mom``, the git ``commit`` of its sources, and whether they
        are ``modified``.
    """
    return {"command": recorded_command(), "version": __version__, **_commit(Path(__file__).parent)}


def _commit(folder: Path) -> dict[str, Any]:
    """Return the commit of this folder; null if git does not track it (an installed package)."""
    if not _git(folder, "ls-files", "provenance.py"):
        return {"commit": None, "modified": None}
    return {
        "commit": _git(folder, "rev-parse", "HEAD"),
        "modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
    }


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command; empty without git or outside a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
