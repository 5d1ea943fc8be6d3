"""A handful of the blows of ``make stress``, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

from tests.stress.processes import ROOT


def test_runs_struck_at_random_moments_end_as_undisturbed_ones():
    line = [sys.executable, "-m", "tests.stress", "--blows", "3", "--seed", "3"]
    line += ["--only", "pretraining", "fine-tuning", "ranks"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
