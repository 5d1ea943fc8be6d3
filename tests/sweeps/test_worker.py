"""A forked process of a job, compared with a fresh one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mom.sweeps.worker import ForkedProcess

PROGRAM = """
import atexit, json, os, random, signal, sys, threading, time
import numpy
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread ended"))).start()
how = sys.argv[1]
facts = {
    "argv": sys.argv, "name": __name__, "file": __file__, "folder": os.getcwd(), "path": sys.path[0],
    "given": os.environ.get("GIVEN"), "home": os.environ.get("HOME"), "threads": os.environ.get("OMP_NUM_THREADS"),
    "leader": os.getsid(0) == os.getpid(), "handlers": [str(signal.getsignal(n)) for n in (2, 15, 1)],
    "input": sys.stdin.read() if sys.stdin else "",
}
with open("facts.json", "w") as file:
    json.dump({**facts, "random": [random.random(), numpy.random.rand()]}, file)
print("to the output")
print("to the error", file=sys.stderr)
sys.stdout.flush()
if how == "raise":
    raise ZeroDivisionError("no way")
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "wait":
    os.mkfifo("there")
    open("started", "w").write("yes")
    signal.pause()
sys.exit({"exit": 3, "succeed": 0}[how])
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in a folder, with this process in another."""
    path = tmp_path / "its" / "program.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return path


def forked(program: Path, *line: str, **environment: str) -> ForkedProcess:
    with open("output", "ab") as output:
        return ForkedProcess([str(program), *line], output.fileno(), os.environ | environment)


@pytest.mark.parametrize(("how", "code"), [("succeed", 0), ("exit", 3), ("raise", 1), ("kill", -9)])
def test_a_forked_process_is_like_a_fresh_one(program: Path, how: str, code: int) -> None:
    assert forked(program, how, GIVEN="it").wait() == code
    mine, output = json.loads(Path("facts.json").read_text()), Path("output").read_text()

    with open("fresh", "wb") as file:
        fresh = subprocess.run(
            [sys.executable, str(program), how],
            env=os.environ | {"GIVEN": "it", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    theirs = json.loads(Path("facts.json").read_text())
    assert fresh.returncode == code
    assert mine["random"] != theirs["random"]
    assert {**mine, "random": 0, "path": 0} == {**theirs, "random": 0, "path": 0}
    last = [text for text in Path("fresh").read_text().splitlines() if not text.startswith(" ")]
    assert sorted(set(last) - set(output.splitlines())) == []


def test_forked_processes_have_different_random_numbers(program: Path) -> None:
    numbers = []
    for _ in range(2):
        assert forked(program, "succeed").wait() == 0
        numbers.append(json.loads(Path("facts.json").read_text())["random"])
    assert numbers[0][0] != numbers[1][0] and numbers[0][1] != numbers[1][1]


def test_a_signal_ends_a_forked_process_and_no_other(program: Path) -> None:
    process = forked(program, "wait")
    while not Path("started").exists():
        with pytest.raises(TimeoutError):
            process.wait(0.05)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert forked(program, "succeed").wait() == 0
