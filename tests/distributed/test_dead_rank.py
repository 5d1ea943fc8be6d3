"""When a rank is killed, the other says which in one line, and the status is true."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from mom.callbacks import RankAgreement
from mom.errors import RankDied
from mom.runs.owner import Process
from tests.helpers.processes import ROOT, run


@pytest.mark.parametrize(("mine", "dead", "records"), [(0, 1, False), (1, 0, True), (2, 0, False)])
def test_the_first_survivor_records_what_the_first_process_cannot(mine, dead, records):
    ranks = RankAgreement({})
    me = Process.current()
    ranks._processes = [me, me, me]
    ranks._processes[dead] = Process(me.host, me.pid, me.started - 3600)
    ranks._rank = mine
    with pytest.raises(RankDied, match=rf"^rank {dead} \(process {me.pid} on ") as raised:
        ranks.check_alive()
    assert raised.value.records is records


def test_processes_that_live_or_cannot_be_seen_are_not_dead(monkeypatch):
    monkeypatch.setattr("mom.callbacks.ranks._DEATH_SECONDS", 0.0)
    ranks = RankAgreement({})
    ranks._processes = [Process.current(), Process.current(), Process("elsewhere", 1, 0.0)]
    ranks.check_alive()


KILLED = """
import json, os, sys
from pathlib import Path
from tests.stress.processes import Blow, load, run
folder = Path(sys.argv[1])
os.environ["MOM_CACHE"] = str(folder / "cache")
load()
line = ["experiment=smoke", "task.plain_steps=0", "callbacks.figures=null", "callbacks.samples=null", "trainer=ddp"]
line += ["trainer.accelerator=cpu", "trainer.devices=2", f"run_dir={folder / 'run'}", "trainer.max_steps=50"]
ends = run(line, folder / "run", Blow(9, int(sys.argv[3]), int(sys.argv[2])), 2)
print(json.dumps([[end.code, end.output] for end in ends]))
"""


@pytest.mark.parametrize(("rank", "moment"), [(0, 40), (1, 4)])
def test_the_survivor_prints_one_line_and_the_status_is_failed(
    tmp_path: Path, rank: int, moment: int
) -> None:
    program = tmp_path / "killed.py"
    program.write_text(KILLED, encoding="utf-8")
    done = run([str(program), str(tmp_path), str(rank), str(moment)], ROOT, tmp_path / "output.txt")
    assert done.code == 0, done.output
    ends = json.loads(done.output.splitlines()[-1])
    assert ends[rank][0] == -signal.SIGKILL
    code, output = ends[1 - rank]
    lines = [one for one in output.splitlines() if one.startswith("error: ")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in output, output
    assert lines[0].startswith(f"error: rank {rank} (process ")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and status["error"]["type"] == "RankDied"
