"""The dashboard task: the specification written offline, and the workspace saved online."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mom.config import bind
from mom.errors import UsageError
from mom.metrics.names import FIGURES, SAMPLES, SECTIONS
from mom.runs.directory import RunDirectory
from mom.tasks import dashboard


def request(folder, **options):
    return bind({"task": {"name": "dashboard", **options}, "run_dir": str(folder / "run")})


def test_offline_the_specification_is_written_and_nothing_sent(tmp_path, capsys):
    config = request(tmp_path, project="mine", title="Routing")
    summary = dashboard.run(config, RunDirectory(config.run_dir))
    assert summary["url"] is None
    assert "offline, so nothing was sent" in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "workspace.json").read_text())
    assert (written["project"], written["displayName"]) == ("mine", "Routing")
    sections = written["spec"]["section"]["panelBankConfig"]["sections"]
    assert [one["name"] for one in sections[:-2]] == list(SECTIONS)
    for one in sections[:-2]:
        assert [panel["config"]["metrics"] for panel in one["panels"]] == [
            [name] for name in SECTIONS[one["name"]]
        ]
        assert {panel["config"]["xAxis"] for panel in one["panels"]} == {dashboard.STEP}
    assert sections[-2]["panels"][0]["config"]["mediaKeys"] == list(FIGURES)
    assert SAMPLES in json.dumps(sections[-1]["panels"])


def test_online_the_workspace_is_saved_for_the_entity(tmp_path, monkeypatch):
    from wandb_workspaces.workspaces import Workspace

    saved: list[Workspace] = []
    monkeypatch.setattr(dashboard, "is_offline", lambda: False)
    monkeypatch.setattr(Workspace, "save", lambda self: saved.append(self))
    # The library asks the server for the workspace's URL.
    monkeypatch.setattr(
        Workspace, "url", property(lambda self: f"https://there/{self.entity}/{self.project}")
    )
    config = request(tmp_path, entity="team")
    summary = dashboard.run(config, RunDirectory(config.run_dir))
    assert len(saved) == 1
    assert summary["url"] == "https://there/team/mom"


def test_wandb_mode_decides(monkeypatch):
    assert dashboard.is_offline()  # tests/conftest.py sets WANDB_MODE=offline


@pytest.mark.skipif(os.name != "posix", reason="opens a terminal of POSIX")
def test_without_a_key_nobody_is_asked_for_one_at_a_terminal(tmp_path):
    import pty

    terminal, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    code = "from mom.tasks.dashboard import is_offline; raise SystemExit(0 if is_offline() else 1)"
    with os.fdopen(theirs, "wb"):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"HOME": str(tmp_path)},
            cwd=tmp_path,
        )
    assert process.wait(120) == 0
    os.close(terminal)


def test_an_empty_name_is_rejected(tmp_path):
    with pytest.raises(UsageError, match=r"task\.project must be a name, got ''"):
        request(tmp_path, project="")
