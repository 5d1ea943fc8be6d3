"""One job: its lock, its directory, and the status recorded for a process that could not."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mom.runs.directory import RunDirectory
from mom.sweeps.jobs import Job
from mom.sweeps.process import Stop, run_job, settle_abandoned, this_program

# Stand-in for run.py: writes its overrides and status to run_dir.
SUCCEEDS = """
import json, os, sys
folder = [line for line in sys.argv if line.startswith("run_dir=")][0][8:].strip("'").replace("\\\\'", "'")
open(folder + "/overrides", "w").write("\\n".join(sys.argv[1:]))
open(folder + "/status.json", "w").write(json.dumps({"state": "succeeded", "error": None}))
"""


def a_job(folder: Path, *, resumes: bool = True, **config: Any) -> Job:
    return Job(("seed=1",), "seed=1", config, folder, resumes)


def run(
    job: Job, code: str = SUCCEEDS, stop: Stop | None = None, started: Callable[[Job], None] | None = None
) -> None:
    run_job(job, (sys.executable, "-c", code), stop or Stop(), started or (lambda job: None))


def error(job: Job) -> str:
    return json.loads((job.folder / "status.json").read_text())["error"]["message"]


def test_a_job_gets_its_overrides_and_is_no_sweep(tmp_path: Path) -> None:
    job = a_job(tmp_path / "it's 0", search={})
    run(job)

    given = (job.folder / "overrides").read_text().splitlines()
    assert given == [
        "seed=1",
        "hydra.mode=RUN",
        "hydra.sweeper.params=null",
        "search=null",
        f"run_dir='{tmp_path}/it\\'s 0'",
    ]
    assert OverridesParser.create().parse_override(given[-1]).value() == str(job.folder)
    assert job.state == "succeeded"


def test_a_later_task_of_a_slurm_job_only_starts_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may remove the folder and make it again, so the others leave it alone."""
    job = a_job(tmp_path / "0", resumes=False)
    held = os.open(tmp_path / ".0.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setenv("SLURM_PROCID", "1")
    run(job, f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    os.close(held)

    assert (tmp_path / "ran").exists()
    RunDirectory(job.folder)  # as the process of that rank does
    assert not job.folder.exists()


@pytest.mark.parametrize("resumes", [True, False])
def test_another_attempt_resumes_or_starts_over(tmp_path: Path, resumes: bool) -> None:
    job = a_job(tmp_path / "0", resumes=resumes)
    checkpoint = job.folder / "plain" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    RunDirectory(job.folder).status("interrupted")
    run(job)

    given = (job.folder / "overrides").read_text().splitlines()
    assert given[-2:] == ["ckpt=null", "resume=auto"] if resumes else "resume=auto" not in given
    assert checkpoint.exists() == resumes


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("print('error: a: b; c'); raise SystemExit(2)", "exit code 2: error: a: b; c"),
        ("print('50%\\r100%\\n\\n'); raise SystemExit(3)", "exit code 3: 100%"),
    ],
)
def test_a_process_that_says_nothing_is_marked_failed(tmp_path: Path, code: str, message: str) -> None:
    job = a_job(tmp_path / "0")
    RunDirectory(job.folder).status("failed", "of the attempt before")
    run(job, code)

    assert (job.state, error(job)) == ("failed", message)


# Reports that it runs, ignores the first signal, and exits at the second.
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
open(sys.argv[-1].split("=", 1)[1].strip("'") + "/started", "w").write("here")
while True:
    signal.pause()
"""


def test_a_second_request_to_stop_ends_a_job_that_ignored_the_first(tmp_path: Path) -> None:
    job = a_job(tmp_path / "0")
    job.folder.mkdir()
    os.mkfifo(job.folder / "started")
    stop = Stop()

    def ask(_: Job) -> None:
        threading.Thread(
            target=lambda: ((job.folder / "started").read_text(), setattr(stop, "requests", 2))
        ).start()

    run(job, STUBBORN, stop, ask)
    assert job.state == "interrupted"


def test_a_job_waits_for_the_process_that_holds_its_lock(tmp_path: Path) -> None:
    job = a_job(tmp_path / "0")
    job.folder.mkdir()
    RunDirectory(job.folder).status("running")
    held = os.open(tmp_path / ".0.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    settle_abandoned(job)
    assert job.state == "running"

    begun: list[Job] = []
    waiting = threading.Thread(target=run, args=(job, SUCCEEDS, None, begun.append))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and not begun
    # The other process ends successfully, so nothing is left to do.
    RunDirectory(job.folder).status("succeeded")
    os.close(held)
    waiting.join()
    assert not begun


def test_a_job_that_is_stopped_while_it_waits_does_not_run(tmp_path: Path) -> None:
    job = a_job(tmp_path / "0")
    held = os.open(tmp_path / ".0.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    run(job, stop=Stop(requests=1))
    os.close(held)

    assert not job.folder.exists()


def test_the_process_of_a_job_holds_its_lock(tmp_path: Path) -> None:
    job = a_job(tmp_path / "0")
    job.folder.mkdir()
    os.mkfifo(job.folder / "started")
    code = STUBBORN.replace('write("here")', 'write(str(__import__("os").getpid()))')
    pids: list[int] = []
    seen: list[bool] = []

    def look(_: Job) -> None:
        def inspect() -> None:
            pids.append(int((job.folder / "started").read_text()))
            other = os.open(tmp_path / ".0.lock", os.O_RDWR)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                seen.append(True)
            os.close(other)
            os.kill(pids[0], signal.SIGKILL)

        threading.Thread(target=inspect).start()

    run(job, code, started=look)
    assert seen == [True]
    assert error(job) == "killed by SIGKILL"


def test_a_job_whose_process_died_is_marked(tmp_path: Path) -> None:
    job = a_job(tmp_path / "0")
    RunDirectory(job.folder).status("running")
    settle_abandoned(job)

    assert (job.state, error(job)) == ("interrupted", "its process died")


def test_an_error_of_the_sweep_ends_the_job_before_its_lock_is_released(tmp_path: Path) -> None:
    job = a_job(tmp_path / "0")
    job.folder.mkdir()
    os.mkfifo(job.folder / "started")
    pids: list[int] = []

    def fail(_: Job) -> None:
        pids.append(int((job.folder / "started").read_text()))
        raise RuntimeError("no console")

    code = "import os, sys, time\n" + STUBBORN.splitlines()[3].replace('"here"', "str(os.getpid())")
    with pytest.raises(RuntimeError, match="no console"):
        run(job, code + "\ntime.sleep(600)", started=fail)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_jobs_read_the_added_directory_of_configuration_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (["--config-dir", "studies", "-m", "seed=0,1"], ["seed=0,1", "-m", "--config-dir=studies"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *line])
        assert this_program() == (sys.executable, os.path.abspath("run.py"), "--config-dir", "studies")
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "seed=0,1"])
    assert this_program() == (sys.executable, os.path.abspath("run.py"))
