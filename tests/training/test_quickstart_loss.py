"""The quickstart's validation loss against the recorded one, from the request to the summary.

In the environment of the record they agree to 1e-6. Elsewhere the corpus (the standard library of another Python) and
the last bits of the kernels differ, so there they need to agree to 0.1 only.

    python -m tests.training.test_quickstart_loss full      # the complete quickstart, about two minutes
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "quickstart.json").read_text(encoding="utf-8"))
CHANGES = {
    "short": ["trainer.max_steps=12", "trainer.val_check_interval=6"],
    "full": [],
}


def environment() -> dict[str, str]:
    """Return the versions and hardware that affect the last digits of a loss."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def loss(length: str, folder: Path) -> float:
    """Train on one thread, in a new process; return the last validation loss."""
    command = [sys.executable, "run.py", *CHANGES[length], f"run_dir={folder}", "trainer.accelerator=cpu"]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True, timeout=1200)
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["val/loss"]


def test_the_quickstart_ends_at_the_recorded_loss(tmp_path):
    tolerance = 1e-6 if environment() == GOLDEN["environment"] else 0.1
    assert loss("short", tmp_path / "run") == pytest.approx(GOLDEN["short"], abs=tolerance, rel=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = loss(sys.argv[1], Path(folder) / "run")
    print(json.dumps({"environment": environment(), sys.argv[1]: found}, indent=1))
