"""The progress bar in a terminal and in a file."""

from __future__ import annotations

import pytest
from rich.console import Console

from mom.callbacks import EffectiveDepth, StepProgressBar, progress
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch


def train(tmp_path, bar: StepProgressBar) -> None:
    batches = [token_batch(seed) for seed in range(4)]
    options = {
        "max_steps": 4,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "enable_progress_bar": True,
    }
    trainer = plain_trainer(tmp_path, [EffectiveDepth(), bar], **options)
    trainer.fit(small_module(), datamodule=FixedBatches(batches, [token_batch(9)]))


def test_in_a_file_it_writes_one_line_per_validation(tmp_path, capsys):
    train(tmp_path, StepProgressBar("mom"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["mom", "2/4"], ["mom", "4/4"]]
    assert all(word in lines[1] for word in ("loss", "val", "depth"))


def test_in_a_terminal_it_is_one_line(tmp_path, capsys, monkeypatch):
    def terminal(file) -> Console:
        return Console(file=file, force_terminal=True, width=120)

    monkeypatch.setattr(progress, "Console", terminal)
    train(tmp_path, StepProgressBar("mom"))
    out = capsys.readouterr().out
    assert "4/4" in out
    assert "depth" in out
    assert out.count("\n") == 1


def test_a_disabled_bar_prints_nothing(tmp_path, capsys):
    bar = StepProgressBar()
    bar.disable()
    train(tmp_path, bar)
    assert capsys.readouterr().out == ""
    bar.enable()
    train(tmp_path, bar)
    assert "4/4" in capsys.readouterr().out


def test_a_failure_releases_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=file, force_terminal=True, width=120))
    bar = StepProgressBar()
    monkeypatch.setattr(EffectiveDepth, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, bar)
    assert bar._progress is None
