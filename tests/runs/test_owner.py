"""A run directory has one owner; the lock of a dead one is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mom.errors import UsageError
from mom.runs import owner
from mom.runs.directory import RunDirectory, read_status
from mom.runs.owner import LOCK, Process, own, owner_has_died

HOLDER = """
import sys
from pathlib import Path
from mom.runs.owner import own
with own(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that owns the folder."""
    line = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "here\n"
    return holder


def write_lock(folder: Path, **changes: object) -> None:
    me = Process.current()
    fields = {"host": me.host, "pid": me.pid, "started": me.started, "token": "other"} | changes
    (folder / LOCK).write_text(json.dumps(fields))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as refused, own(folder):
        pass
    return str(refused.value)


def test_a_live_owner_is_refused_and_named(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    assert refusal(tmp_path).startswith(f"run_dir {tmp_path} is in use by process {holder.pid} on ")
    assert not owner_has_died(tmp_path)
    holder.communicate("")
    assert not list(tmp_path.iterdir())
    with own(tmp_path):
        pass


def test_the_lock_of_a_killed_owner_is_taken_over_even_while_it_is_a_zombie(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    RunDirectory(tmp_path).status("running")
    assert read_status(tmp_path)["state"] == "running"
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert owner_has_died(tmp_path)
    status = read_status(tmp_path)
    assert (status["state"], status["error"]["message"]) == ("interrupted", "its process died")
    with own(tmp_path):
        assert "in use" in refusal(tmp_path)
    holder.communicate()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_is_released_when_the_body_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), own(tmp_path):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_process_with_the_same_number_is_another_one(tmp_path: Path) -> None:
    write_lock(tmp_path, started=Process.current().started - 3600)
    with own(tmp_path):
        pass


def test_an_owner_on_another_host_counts_as_dead_when_its_heartbeat_is_five_minutes_old(
    tmp_path: Path,
) -> None:
    write_lock(tmp_path, host="elsewhere pid:[1]", pid=1)
    now = time.time()
    for age, dead in ((0, False), (280, False), (320, True)):
        os.utime(tmp_path / LOCK, (now - age, now - age))
        assert owner_has_died(tmp_path) is dead, age
    os.utime(tmp_path / LOCK)
    assert "process 1 on elsewhere, started" in refusal(tmp_path)
    os.utime(tmp_path / LOCK, (now - 320, now - 320))
    with own(tmp_path):
        pass


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_SECONDS", 0.01)
    with own(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        for _ in range(500):
            if (tmp_path / LOCK).stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1


def test_a_damaged_lock_holds_until_it_is_old(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{")
    assert "in use by another process" in refusal(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    with own(tmp_path):
        pass


def test_without_hard_links_a_lock_is_created_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    with own(tmp_path):
        assert "in use" in refusal(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left_by_a_dead_one", [False, True])
def test_of_many_that_start_at_once_one_owns(tmp_path: Path, left_by_a_dead_one: bool) -> None:
    if left_by_a_dead_one:
        write_lock(tmp_path, started=0)
    began = threading.Barrier(8)
    owners: list[int] = []
    done = threading.Event()

    def start(number: int) -> None:
        began.wait()
        try:
            with own(tmp_path):
                owners.append(number)
                done.wait()
        except UsageError:
            pass

    threads = [threading.Thread(target=start, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        if owners and sum(thread.is_alive() for thread in threads) <= 1:
            break
        time.sleep(0.02)
    assert len(owners) == 1
    done.set()
    for thread in threads:
        thread.join()


def test_what_killed_processes_left_is_removed_but_not_that_of_other_runs(tmp_path: Path) -> None:
    inner, other = tmp_path / "plain" / "checkpoints", tmp_path / "other"
    for folder in (inner, other):
        folder.mkdir(parents=True)
        (folder / ".last.ckpt.0123abcd.tmp").touch()
    (tmp_path / ".tokenizer.tmp").mkdir()
    (tmp_path / ".tokenizer.tmp" / "x").touch()
    (tmp_path / "notes.tmp").touch()
    (other / LOCK).touch()
    with RunDirectory(tmp_path).owned():
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["notes.tmp", "other/.last.ckpt.0123abcd.tmp", "other/run.lock", "run.lock"]
