"""Console output at the end of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mom.sweeps.jobs import Job
from mom.sweeps.report import print_jobs


def test_brackets_of_a_job_are_shown_and_its_state_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job((), "models=[mom_tiny]", {}, tmp_path / "0", resumes=False)
    job.folder.mkdir()
    (job.folder / "status.json").write_text(json.dumps({"state": "succeeded", "error": None}))
    (job.folder / "summary.json").write_text(json.dumps({"val/loss": 1.5}))

    print_jobs([job], tmp_path)
    printed = capsys.readouterr().out
    assert "1 job\n" in "\n".join(line.rstrip() for line in printed.splitlines()) + "\n"
    assert "models=[mom_tiny]" in printed and "succeeded" in printed and "1.5000" in printed
