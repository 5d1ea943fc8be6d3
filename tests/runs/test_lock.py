"""A folder's lock has one holder and is released when the last process that holds it exits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mom.runs import lock
from mom.runs.lock import hold

# Holds a folder's lock and waits; with a further argument, so does a child that inherits the lock.
HOLDER = """
import subprocess, sys
from pathlib import Path
from mom.runs.lock import hold
with hold(Path(sys.argv[1]), lambda: True) as descriptors:
    child = subprocess.Popen(sys.argv[2:], pass_fds=descriptors) if sys.argv[2:] else None
    print(child.pid if child else 0, flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path, *child: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds the lock of ``folder``; return it and its child's process id."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


def test_a_folder_that_does_not_exist_yet_can_be_held(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "0"
    with hold(folder, lambda: True) as descriptors:
        assert descriptors is not None
        assert not folder.exists()
    with hold(folder, lambda: True) as again:
        assert again is not None


def test_the_lock_is_released_when_the_body_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="body"), hold(tmp_path / "0", lambda: True):
        raise RuntimeError("body")
    with hold(tmp_path / "0", lambda: True) as descriptors:
        assert descriptors is not None


def test_the_lock_is_released_while_somebody_still_refers_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [lock.folder_lock(tmp_path / "0")]  # filelock would also release it when nobody does
    monkeypatch.setattr(lock, "folder_lock", lambda *_: kept[0])
    with hold(tmp_path / "0", lambda: True):
        assert kept[0].is_locked
    assert not kept[0].is_locked


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    holder, _ = start_holder(tmp_path / "0")
    with hold(tmp_path / "0", lambda: True) as descriptors:
        assert descriptors is None
    holder.kill()
    holder.communicate()
    with hold(tmp_path / "0", lambda: True) as descriptors:
        assert descriptors is not None


@pytest.mark.skipif(os.name != "posix", reason="descriptors are inherited on POSIX only")
def test_a_child_keeps_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    holder, child = start_holder(tmp_path / "0", sys.executable, "-c", "import time; time.sleep(600)")
    holder.kill()
    holder.wait()
    try:
        with hold(tmp_path / "0", lambda: True) as descriptors:
            assert descriptors is None
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()  # returns once the child has exited and closed its end of the pipe
    with hold(tmp_path / "0", lambda: False) as descriptors:
        assert descriptors is not None
