"""A sweep in a process of its own, to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sweeps import program


def start_and_wait_until_blocked(*line: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a sweep in the working folder; returns it once its job with seed 8 waits, and that job's process id."""
    os.mkfifo("news")
    sweep = subprocess.Popen([sys.executable, program.__file__, *line], stdout=subprocess.DEVNULL)
    return sweep, int(Path("news").read_text())
