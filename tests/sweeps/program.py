"""``run.py`` with a fast stand-in for the task, whose behavior depends on the seed.

1, 3: succeed. 2: fails until the file ``fixed`` exists. 6: kills itself. 7: rejects the request.
5: its loss depends on the learning rate; as a trial it can be pruned.
8: writes a checkpoint, writes its process id to the pipe ``started``, and waits for a signal; resumed, it succeeds.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mom.cli import main
from mom.config import RunConfig
from mom.errors import UsageError
from mom.runs.directory import RunDirectory
from mom.sweeps.study import PRUNED_AT, open_trial

ROOT = Path(__file__).resolve().parents[2]


def task(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    print("working")
    if config.seed == 2 and not Path("fixed").exists():
        raise ZeroDivisionError("no\nway")
    if config.seed == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 7:
        raise UsageError("data.path must be an existing file, got x")
    if config.seed == 5:
        loss = abs(math.log10(config.optimizer.lr) + 3)
        if "prune" in config.callbacks:
            report(loss, **config.callbacks["prune"].arguments)
        return {"val/loss": loss}
    if config.seed == 8 and config.resume is None:
        (run.path / "checkpoints").mkdir()
        (run.path / "checkpoints" / "last.ckpt").touch()
        Path("started").write_text(f"{os.getpid()}\n")
        signal.pause()
    return {
        "val/loss": float(config.seed),
        "resumed": config.resume == "auto",
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def report(loss: float, journal: str, trial: int) -> None:
    """Report a loss as a trial's pruning callback does after a validation."""
    handle = open_trial(journal, trial)
    handle.report(loss, 1)
    if handle.should_prune():
        handle.set_user_attr(PRUNED_AT, 1)
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.modules["mom.tasks.pretrain"] = SimpleNamespace(run=task)  # type: ignore[assignment]
    RunConfig.check_buildable = lambda self, devices=True: None  # type: ignore[method-assign,misc]
    sys.exit(main(ROOT / "conf"))
