"""``python -m tests.stress --blows 40``: strike runs at random moments of their life, go on, and compare.

Prints a line for each blow. Exits with 1 if a run did not end as the undisturbed one; its folder is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from mom.runs.directory import read_status
from tests.helpers.glue_files import write_glue
from tests.stress.compare import check_after_blow, check_equal
from tests.stress.processes import Blow, JobKiller, load, run

SMALL = (
    "callbacks.figures=null",
    "callbacks.samples=null",
    "model.dropout=0.1",
    "trainer.accumulate_grad_batches=2",
)
JOB_FILES = ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "summary.json")
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)


class Scenarios:
    """Requests by name, and their undisturbed runs.

    Args:
        folder: where runs and data are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_glue(folder / "glue", "cola", {"train": 21, "dev": 6, "test": 4})
        pretraining = ["experiment=smoke", *SMALL, "trainer.val_check_interval=3", "trainer.max_steps=4"]
        tuning = [
            "task=finetune",
            f"init={folder / 'pretraining' / 'checkpoints' / 'last.ckpt'}",
            "data=glue",
            "data.name=cola",
            f"data.path={folder / 'glue'}",
            "data.sequence_length=32",
            "data.batch_size=4",
            "trainer=cpu",
            "trainer.log_every_n_steps=1",
            "trainer.accumulate_grad_batches=2",
            "task.dropout=0.1",
            "callbacks.figures=null",
            "callbacks.samples=null",
        ]
        ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.log_every_n_steps=1"]
        self.lines = {
            "pretraining": pretraining,
            "fine-tuning": tuning,
            "seeds": [*tuning, "task.seeds=[1,2]", "task.epochs=1.0"],
            "sweep": ["-m", "seed=1,2", *pretraining, "task.plain_steps=0", "task.baseline=false"],
            "ranks": [*pretraining, *ranks, "task.baseline=false"],
        }
        self._moments: dict[str, list[int]] = {}

    def world_size(self, name: str) -> int:
        """Return the number of processes of a scenario."""
        return 2 if name == "ranks" else 1

    def moments(self, name: str) -> list[int]:
        """Return the number of moments of each rank in the undisturbed run, which is made when it is first needed."""
        if name not in self._moments:
            if name != "pretraining":
                self.moments("pretraining")  # provides weights
            folder = self.folder / name
            ends = run(self._line(name, folder), folder, world_size=self.world_size(name))
            assert all(end.code == 0 for end in ends), ends[0].output[-3000:]
            self._moments[name] = [end.moments for end in ends]
        return self._moments[name]

    def _line(self, name: str, folder: Path) -> list[str]:
        """Return the request that starts a run, or goes on with it."""
        if name == "sweep":
            return [*self.lines[name], f"hydra.sweep.dir={folder}"]
        return [*self.lines[name], f"run_dir={folder}", "resume=auto"]

    def strike(self, name: str, draw: random.Random, folder: Path) -> str:
        """Strike a run once or twice, go on, and compare; return a description of the blows."""
        lived = self.moments(name)
        told = []
        for _ in range(draw.choice((1, 1, 2))):
            rank = draw.randrange(len(lived))
            number = draw.choice((signal.SIGKILL, signal.SIGKILL, *SIGNALS))
            blow = Blow(number, draw.randint(1, lived[rank]), rank)
            told.append(
                f"{signal.Signals(number).name} {blow.moment}/{lived[rank]}" + f" rank {rank}" * (rank > 0)
            )
            ends = run(self._line(name, folder), folder, blow, len(lived))
            self._check_blow(blow, ends[rank].code, ends[rank].moments, folder, len(lived))
            if name != "sweep":  # the running job outlives its sweep
                check_after_blow(folder)
        ends = run(self._line(name, folder), folder, world_size=len(lived))
        assert all(end.code == 0 for end in ends), "\n".join(end.output[-3000:] for end in ends)
        check_equal(folder, self.folder / name)
        return ", ".join(told)

    def strike_job(self, draw: random.Random, folder: Path) -> str:
        """Kill the process of one of a sweep's jobs, go on with the sweep, and compare; return what was done."""
        self.moments("sweep")
        killer = JobKiller(folder / draw.choice("01"), draw.choice(JOB_FILES), draw.uniform(0, 1))
        (end,) = run(self._line("sweep", folder), folder, watch=killer)
        assert end.code in (0, int(killer.has_struck)), end.output[-3000:]  # 0: the job had recorded its end
        (end,) = run(self._line("sweep", folder), folder)
        assert end.code == 0, end.output[-3000:]
        check_equal(folder, self.folder / "sweep")
        when = f"{killer.delay:.1f} s after {killer.name}"
        return f"SIGKILL to job {killer.job.name} {when}" if killer.has_struck else f"no job {when}"

    @staticmethod
    def _check_blow(blow: Blow, code: int, moments: int, folder: Path, world_size: int) -> None:
        """Check the exit code of the process that was struck, and its state."""
        state = read_status(folder).get("state")
        if moments < blow.moment:  # it ended before
            assert code == 0, code
        elif blow.number == signal.SIGKILL:
            assert code == -signal.SIGKILL, code
        elif code == 0:  # it had ended, and only its record was missing
            assert state in (None, "succeeded"), state
        else:
            assert code == 128 + blow.number, code
            assert state in (None, "interrupted") or world_size > 1, state


def main() -> int:
    """Strike as often as asked; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--blows", type=int, default=40, help="runs to strike")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", nargs="*", help="scenarios; default: all")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MOM_RUN_DIR"):
        os.environ.pop(name, None)
    folder = Path(tempfile.mkdtemp(prefix="mom-stress-"))
    os.environ["MOM_CACHE"] = str(folder / "cache")
    load()
    scenarios = Scenarios(folder)
    names = given.only or [*scenarios.lines, "jobs"]
    failed = 0
    for number in range(given.blows):
        name = names[number % len(names)]
        struck = folder / f"{name}-{number}"
        draw = random.Random(f"{given.seed} {number}")
        start = time.monotonic()
        try:
            told = (
                scenarios.strike_job(draw, struck) if name == "jobs" else scenarios.strike(name, draw, struck)
            )
        except (AssertionError, TimeoutError) as error:
            failed += 1
            print(f"{number + 1:3} {name}: FAILED (kept in {struck}): {error}", flush=True)
        else:
            print(f"{number + 1:3} {name}: {told}: equal ({time.monotonic() - start:.0f} s)", flush=True)
            shutil.rmtree(struck, ignore_errors=True)
    print(f"{given.blows - failed} of {given.blows} runs ended as the undisturbed ones")
    if not failed:
        shutil.rmtree(folder)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
