"""Runs started by torchrun and Slurm: two processes on the CPU, one run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import free_port
from tests.helpers.processes import ROOT

REQUEST = (
    "experiment=smoke",
    "task.plain_steps=0",
    "logger=many",
    "callbacks.figures=null",
    "callbacks.samples=null",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.log_every_n_steps=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
)


def environment(folder: Path, **variables: object) -> dict[str, str]:
    """Return this process's environment with added variables."""
    return os.environ | {
        "MOM_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        **{name: str(value) for name, value in variables.items()},
    }


def torchrun(folder: Path, run: Path) -> list[subprocess.Popen]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [start([*launcher, "run.py", *REQUEST, f"run_dir={run}"], environment(folder))]


def slurm(folder: Path, run: Path) -> list[subprocess.Popen]:
    """Start two processes with the variables that ``srun`` sets for two tasks on one node."""
    port = free_port()
    tasks = []
    for rank in range(2):
        variables = {
            "SLURM_JOB_ID": 1234,
            "SLURM_JOB_NAME": "mom",
            "SLURM_NNODES": 1,
            "SLURM_NODEID": 0,
            "SLURM_NTASKS": 2,
            "SLURM_NTASKS_PER_NODE": 2,
            "SLURM_PROCID": rank,
            "SLURM_LOCALID": rank,
            "MASTER_PORT": port,  # the default depends on the job's id, which another test may share
        }
        tasks.append(
            start([sys.executable, "run.py", *REQUEST, f"run_dir={run}"], environment(folder, **variables))
        )
    return tasks


def start(command: list[str], variables: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Run both launchers in a folder."""
    folder = tmp_path_factory.mktemp("launchers")
    for launcher in (torchrun, slurm):
        processes = launcher(folder, folder / launcher.__name__)
        try:
            printed = [process.communicate(timeout=300)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)
        (folder / f"{launcher.__name__}.txt").write_text("".join(printed), encoding="utf-8")
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_processes_are_one_run(folder, launcher):
    run = folder / launcher
    assert json.loads((run / "status.json").read_text())["state"] == "succeeded"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    with (run / "metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == ["0", "1"]
    # Two processes with 4 windows of 64 tokens each, not two runs of one process.
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(checkpoint["callbacks"]["RandomState"]["ranks"]) == 2
    assert checkpoint["LanguageModelingDataModule"]["samples_consumed"] == 2 * 2 * 4
    assert (folder / f"{launcher}.txt").read_text(encoding="utf-8").count("validation loss") == 1


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_processes_are_one_run_to_wandb(folder, launcher):
    identity = (folder / launcher / "wandb_run_id").read_text().strip()
    (piece,) = (folder / launcher / "wandb").glob("offline-run-*")
    assert piece.name.endswith(identity)


def test_both_train_the_same(folder):
    one, other = (
        torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("torchrun", "slurm")
    )
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
