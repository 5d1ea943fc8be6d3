"""Launchers: one job at a time, several at a time on different GPUs, and Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import FailedJobError

from mom.config.launcher import JoblibConfig, SlurmConfig, launcher_section
from mom.errors import UsageError
from mom.sweeps import launchers
from mom.sweeps.jobs import Job
from mom.sweeps.launchers import check_launcher, slurm_parameters
from mom.sweeps.process import Stop

Launch = Callable[..., int]


def summaries() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path("s").glob("*/summary.json"))]


def test_joblib_runs_every_job_and_shares_the_gpus_out(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,9")
    line = ("launcher=joblib", "launcher.num_workers=null", "launcher.gpus_per_job=2")

    assert launch("-m", "seed=1,2,3", *line, "hydra.sweep.dir=s") == 1
    assert [run["val/loss"] for run in summaries()] == [1, 3]
    assert {run["devices"] for run in summaries()} <= {"3,5", "7,9"}
    assert json.loads(Path("s/1/status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_slurm_runs_every_job(launch: Launch, cluster: str) -> None:
    """Run jobs with submitit's executors for this process and machine; the script for Slurm is tested below."""
    assert launch("-m", "seed=1,3", "launcher=slurm", f"launcher.cluster={cluster}", "hydra.sweep.dir=s") == 0
    assert [run["val/loss"] for run in summaries()] == [1, 3]


def process_above(pid: int, words: str) -> int:
    """Return the process among the parents of ``pid`` whose command has these words."""
    while pid > 1:
        answer = subprocess.run(["ps", "-o", "ppid=,args=", "-p", str(pid)], capture_output=True, text=True)
        parent, _, command = answer.stdout.strip().partition(" ")
        if words in command:
            return pid
        pid = int(parent)
    raise AssertionError(f"no process with {words}")


def test_a_slurm_job_out_of_time_saves_and_is_requeued(launch: Launch) -> None:
    """submitit's local executor requeues a job as Slurm does, after the signal before the time limit."""
    os.mkfifo("started")

    def preempt() -> None:
        pid = int(Path("started").read_text())
        os.kill(process_above(pid, "submitit.core._submit"), signal.SIGUSR2)

    with ThreadPoolExecutor(1) as thread:
        preempted = thread.submit(preempt)
        line = ("launcher=slurm", "launcher.cluster=local", "launcher.timeout_minutes=5", "hydra.sweep.dir=s")
        assert launch("-m", "seed=8", *line) == 0
        preempted.result()

    assert [(run["val/loss"], run["resumed"]) for run in summaries()] == [(8, True)]
    assert json.loads(Path("s/0/status.json").read_text())["state"] == "succeeded"


SBATCH = """#!/bin/sh
cp "$1" {folder}/submitted.sh
echo "Submitted batch job 12"
"""


def test_what_slurm_is_handed_asks_for_what_the_trainer_needs(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("sbatch", SBATCH.format(folder=workdir)), ("srun", "#!/bin/sh\n")):
        program = workdir / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{workdir / 'bin'}{os.pathsep}{os.environ['PATH']}")
    launcher = SlurmConfig(
        name="slurm",
        timeout_minutes=90,
        cpus_per_task=6,
        memory_gb=64.0,
        partition="gpu",
        account="lab",
        constraint="h200",
        setup=["module load cuda"],
    )
    check_launcher(launcher)
    trainer = {"devices": 8, "num_nodes": 2, "accelerator": "gpu"}
    job = Job((), "", {"trainer": trainer}, workdir / "s" / "4", resumes=True)
    executor = launchers._slurm_executor(launcher, workdir / "logs")
    executor.update_parameters(**slurm_parameters(job, launcher))
    executor.submit(print)

    lines = (workdir / "submitted.sh").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")}
    assert {
        "job-name=mom-4",
        "nodes=2",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "cpus-per-task=6",
        "mem=64GB",
        "time=90",
        "partition=gpu",
        "account=lab",
        "constraint=h200",
    } <= asked
    assert "module load cuda" in lines


@pytest.mark.parametrize(
    ("accelerator", "given", "gpus"), [("cpu", None, 0), ("gpu", None, 2), ("auto", 4, 4)]
)
def test_gpus_follow_the_accelerator_or_what_is_given(accelerator: str, given: int | None, gpus: int) -> None:
    trainer = {"devices": 2, "num_nodes": 1, "accelerator": accelerator}
    job = Job((), "", {"trainer": trainer}, Path("s/0"), resumes=True)

    assert slurm_parameters(job, SlurmConfig(name="slurm", gpus_per_node=given))["gpus_per_node"] == gpus


def test_an_unavailable_cluster_is_rejected(workdir: Path) -> None:
    with pytest.raises(UsageError, match=r"^launcher.cluster=slurm is not available: "):
        check_launcher(SlurmConfig(name="slurm"))


@pytest.mark.parametrize("kind", ["joblib", "slurm"])
def test_a_missing_library_is_reported(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(
        UsageError, match=rf"^launcher={kind} requires .*: pip install 'mixture-of-modules\[sweep\]'$"
    ):
        check_launcher(launcher_section({"name": kind}))


@pytest.mark.parametrize(
    ("visible", "options", "shares"),
    [
        ("0,1,2,3", {"num_workers": None, "gpus_per_job": 1}, ["0", "1", "2", "3"]),
        ("0,1,2", {"num_workers": None, "gpus_per_job": 2}, ["0,1"]),
        ("0,1,2,3", {"num_workers": 1, "gpus_per_job": 2}, ["0,1"]),
        ("", {"num_workers": 3}, [None, None, None]),
    ],
)
def test_shares_of_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, options: dict[str, Any], shares: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert launchers._gpu_groups(JoblibConfig(name="joblib", **options)) == shares


def test_more_workers_than_gpus_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    with pytest.raises(
        UsageError, match=r"^launcher.gpus_per_job=1 for 3 parallel jobs needs 3 GPUs; 2 are visible$"
    ):
        check_launcher(JoblibConfig(name="joblib", num_workers=3, gpus_per_job=1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=r"^launcher.gpus_per_job=1 for 1 job needs 1 GPU; 0 are visible$"):
        check_launcher(JoblibConfig(name="joblib", num_workers=None, gpus_per_job=1))


def test_options_of_another_launcher_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"^unknown option launcher.num_workers"):
        launcher_section({"name": "local", "num_workers": 2})
    with pytest.raises(
        UsageError, match=r"^launcher.name must be one of .*, got slrm; did you mean slurm\?$"
    ):
        launcher_section({"name": "slrm"})
    with pytest.raises(UsageError, match=r"^launcher.num_workers must be an integer unless .*, got null$"):
        launcher_section({"name": "joblib", "num_workers": None})


class Cluster:
    """A cluster that accepts a number of jobs at a time, and ends one each time it is asked about it twice."""

    def __init__(self, accepts: int) -> None:
        self.accepts = accepts
        self.running: list[Cluster.Submission] = []
        self.most = 0

    class Submission:
        """A submitted job."""

        def __init__(self, cluster: Cluster) -> None:
            self.cluster = cluster
            self.asked = 0

        def done(self) -> bool:
            """Return whether it has ended."""
            self.asked += 1
            if self.asked == 2:
                self.cluster.running.remove(self)
            return self.asked >= 2

    def update_parameters(self, **_: Any) -> None:
        """Accept any parameters."""

    def submit(self, *_: Any) -> Submission:
        """Submit a job, unless there are too many."""
        if len(self.running) == self.accepts:
            raise FailedJobError("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
        self.running.append(Cluster.Submission(self))
        self.most = max(self.most, len(self.running))
        return self.running[-1]


@pytest.mark.parametrize(("accepts", "most"), [(100, 3), (2, 2), (1, 1)])
def test_slurm_gets_no_more_jobs_at_a_time_than_it_should(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, accepts: int, most: int
) -> None:
    cluster, ended = Cluster(accepts), []
    monkeypatch.setattr(launchers, "_slurm_executor", lambda *_: cluster)
    trainer = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}
    jobs = [Job((), "", {"trainer": trainer}, workdir / str(number), resumes=True) for number in range(7)]
    launcher = SlurmConfig(name="slurm", cluster="debug", max_parallel=3)
    launchers._run_on_slurm(jobs, launcher, workdir, Stop(), ended.append)

    assert sorted(job.folder for job in ended) == sorted(job.folder for job in jobs)
    assert cluster.most == most


def test_a_job_that_slurm_refuses_is_one_line(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "_slurm_executor", lambda *_: Cluster(0))
    trainer = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}
    job = Job((), "", {"trainer": trainer}, workdir / "0", resumes=True)
    with pytest.raises(
        UsageError,
        match=r"^launcher.cluster=debug refuses a job: sbatch: error: QOSMaxSubmitJobPerUserLimit$",
    ):
        launchers._run_on_slurm(
            [job], SlurmConfig(name="slurm", cluster="debug"), workdir, Stop(), lambda job: None
        )
