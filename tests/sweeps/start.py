"""Start a sweep in its own process, so that a test can kill it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sweeps import program


def start_and_wait_until_blocked(*line: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a sweep; return its process and, once the job with seed 8 waits, that job's process id."""
    os.mkfifo("started")
    sweep = subprocess.Popen([sys.executable, program.__file__, *line], stdout=subprocess.DEVNULL)
    return sweep, int(Path("started").read_text())
