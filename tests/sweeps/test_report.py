"""Console output at the end of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mom.sweeps.jobs import Job
from mom.sweeps.report import print_jobs, print_next


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


def test_jobs_on_one_control_are_compared_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"kind": "control", "name": "rules"}
    reached = {"mom": 0.934, "plain": 0.251, "random": 0.1}
    jobs = [
        Job((), f"arm={arm}", {"data": data}, tmp_path / str(number), resumes=True)
        for number, arm in enumerate(reached)
    ]
    for job, held_out in zip(jobs, reached.values(), strict=True):
        (job.folder / "figures").mkdir(parents=True)
        (job.folder / "figures" / "ffn_by_rule.png").touch()
        (job.folder / "status.json").write_text(json.dumps({"state": "succeeded", "error": None}))
        summary = {
            "val/exact_match": 0.9,
            "val/exact_match/held_out": held_out,
            "chance/exact_match": 1 / 32,
            "val/loss": 1.5,
        }
        (job.folder / "summary.json").write_text(json.dumps(summary))

    print_jobs(jobs, tmp_path)
    printed = capsys.readouterr().out
    assert (
        "held out: arm=mom answers 93.4% correctly, the next best, arm=plain, 25.1%; guessing gives 3.1%\n"
        f"Modules that arm=mom runs for each rule: {tmp_path}/0/figures/ffn_by_rule.png\n"
    ) in printed
    assert max(map(len, printed.split("held out: ")[0].splitlines()[1:])) <= 80

    (jobs[1].folder / "status.json").write_text(json.dumps({"state": "failed", "error": None}))
    print_jobs(jobs, tmp_path)
    assert "the next best" not in capsys.readouterr().out
    print_jobs([jobs[0], Job((), "seed=1", {"data": {**data, "seed": 1}}, jobs[2].folder, True)], tmp_path)
    assert "the next best" not in capsys.readouterr().out


def test_the_end_of_a_sweep_names_the_next_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python"])
    monkeypatch.setattr("sys.argv", ["run.py", "seed=0,1,2", "hydra.sweep.dir=old", "-m"])
    monkeypatch.chdir(tmp_path)
    jobs = [Job((), f"seed={seed}", {}, Path("multirun/s") / str(seed), resumes=True) for seed in range(3)]
    for job, state in zip(jobs, ("succeeded", "failed", "succeeded"), strict=True):
        job.folder.mkdir(parents=True)
        (job.folder / "status.json").write_text(json.dumps({"state": state, "error": None}))

    print_next(jobs, Path("multirun/s"))
    resume = "  python run.py seed=0,1,2 -m hydra.sweep.dir=multirun/s"
    compare = "  python run.py task=compare runs=multirun/s"
    assert capsys.readouterr().out.splitlines() == ["", "Next:", resume, compare]
    print_next(jobs[:1], Path("multirun/s"))
    assert capsys.readouterr().out == ""
