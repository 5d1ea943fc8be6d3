"""Provenance names the commit of mom's sources, never that of another project."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from mom.runs.provenance import _commit, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_of_the_repository_that_tracks_the_sources(tmp_path):
    git(tmp_path, "init", "-q")
    file = tmp_path / "provenance.py"
    file.write_text("1\n")
    assert _commit(tmp_path) == {"commit": None, "modified": None}, (
        "not tracked: another project's repository"
    )
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert _commit(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "modified": False}
    file.write_text("2\n")
    assert _commit(tmp_path)["modified"] is True
    shutil.rmtree(tmp_path / ".git")
    assert _commit(tmp_path)["commit"] is None


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance()
    assert found["code"]["commit"] is None
    assert found["data"]["fingerprint"] is None
    assert json.loads(json.dumps(found)) == found
