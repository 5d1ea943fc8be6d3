"""A handful of the blows of ``make stress``, in processes of their own."""

from __future__ import annotations

from tests.helpers.processes import ROOT, run


def test_runs_struck_at_random_moments_end_as_undisturbed_ones(tmp_path):
    line = "-m tests.stress --blows 3 --seed 3 --only pretraining fine-tuning ranks"
    done = run(line.split(), ROOT, tmp_path / "output.txt")
    assert done.code == 0, done.output
