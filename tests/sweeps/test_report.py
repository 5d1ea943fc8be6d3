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


def test_jobs_on_a_control_are_shown_with_each_bucket_and_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {"plain": {"val/exact_match": 0.5, "val/exact_match/hop2_held_out": 0.25}, "mom": {}}
    jobs = [
        Job((), f"arm={arm}", {}, tmp_path / str(number), resumes=True) for number, arm in enumerate(arms)
    ]
    for job, matches in zip(jobs, arms.values(), strict=True):
        job.folder.mkdir()
        state = "succeeded" if matches else "failed"
        (job.folder / "status.json").write_text(json.dumps({"state": state, "error": None}))
        summary = {"chance/exact_match": 0.042, "val/loss": 1.5, **matches}
        (job.folder / "summary.json").write_text(json.dumps(summary))

    print_jobs(jobs, tmp_path)
    lines = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    rows = {cells[2]: cells[4:-1] for cells in lines if len(cells) > 4}
    assert rows == {"arm=plain": ["0.500", "0.250", "0.042", "1.5000"], "arm=mom": ["–"] * 4}
