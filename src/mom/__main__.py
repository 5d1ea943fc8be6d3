"""The command ``mom``, which is also ``python -m mom`` and, in a checkout, ``python run.py``.

``--help`` and ``--version`` are answered here, before Hydra is imported.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from mom import __version__

_PIPE_CLOSED = 128 + 13  # what shells report for SIGPIPE


def main() -> int:
    """Run the command line in ``sys.argv`` and return the exit code."""
    try:
        code = _main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `mom --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at exit
        return _PIPE_CLOSED
    return code


def conf() -> Path:
    """Return the folder of the configuration: inside the package if it was installed, else that of the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def _main(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(f"mom {__version__}")
        return 0
    if arguments in (["--help"], ["-h"]):
        import yaml

        print(yaml.safe_load((conf() / "hydra/help/mom.yaml").read_text(encoding="utf-8"))["template"])
        return 0
    # Importing the libraries makes hundreds of thousands of objects that stay; going through them takes a second.
    gc.disable()
    try:
        from mom.cli import main

        return main(conf())
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
