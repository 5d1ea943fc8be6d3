"""The progress bar in a terminal and in a file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from mom.callbacks import EffectiveDepth, StepProgressBar
from mom.runs.progress import ProgressLine
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
    monkeypatch.setattr("mom.runs.progress.Console", lambda **options: Console(**options, width=120))
    monkeypatch.setattr("mom.runs.progress.can_redraw", lambda stream: True)
    train(tmp_path, StepProgressBar("mom"))
    out = capsys.readouterr().out
    assert "4/4" in out
    assert "depth" in out
    assert out.count("\n") == 1


def test_the_loss_is_a_mean_and_the_time_left_counts_validations(tmp_path, capsys, monkeypatch):
    """Losses 4, 2, 2, 2: the mean weighs later ones more. A step takes 1 second, a validation 10."""
    now = [0.0]
    monkeypatch.setattr("mom.callbacks.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    bar = StepProgressBar("mom")
    trainer = SimpleNamespace(
        max_steps=8,
        global_step=0,
        log_every_n_steps=1,
        accumulate_grad_batches=1,
        num_val_batches=[5],
        val_check_batch=4,
        callback_metrics={},
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
    )
    bar.on_train_start(trainer, None)
    left = []
    for step, loss in enumerate((4.0, 2.0, 2.0, 2.0), start=1):
        now[0] += 1
        trainer.global_step = step
        trainer.callback_metrics = {"train/loss": torch.tensor(loss)}
        bar.on_train_batch_end(trainer, None)
        left.append(bar._line.seconds_left)
    bar.on_validation_start(trainer, None)
    now[0] += 10
    bar.on_validation_end(trainer, None)
    # Before a validation was timed, its 5 forward passes count a third of a step each.
    assert left[1:] == pytest.approx([6 + 2 * 5 / 3, 5 + 2 * 5 / 3, 4 + 5 / 3])
    assert bar._line.seconds_left == pytest.approx(4 + 10)
    weights = [0.9**age for age in (3, 2, 1, 0)]
    mean = sum(weight * loss for weight, loss in zip(weights, (4, 2, 2, 2), strict=True)) / sum(weights)
    assert f"mom  4/8  loss {mean:.3f}  0:14 left" in capsys.readouterr().out


def test_long_predictions_and_evaluations_have_a_line_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ProgressLine.__init__.__kwdefaults__, "delay", 0.0)
    monkeypatch.setattr("mom.runs.progress.SECONDS_BETWEEN", 0.0)
    module, batches = small_module(), [token_batch(seed) for seed in range(3)]
    module.predict_step = lambda batch, batch_idx, dataloader_idx=0: torch.zeros(1)
    trainer = plain_trainer(tmp_path, [StepProgressBar("predict")], enable_progress_bar=True)
    loaders = [DataLoader(part, batch_size=None) for part in (batches, batches[:1])]
    trainer.predict(module, loaders, return_predictions=False)
    trainer.validate(module, datamodule=FixedBatches(batches, batches), verbose=False)
    lines = [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines()]

    assert lines == [
        *(["predicting", f"{done}/4"] for done in (1, 2, 3, 4)),
        *(["evaluating", f"{done}/3"] for done in (1, 2, 3)),
    ]


def test_a_disabled_bar_prints_nothing(tmp_path, capsys):
    bar = StepProgressBar()
    bar.disable()
    train(tmp_path, bar)
    assert capsys.readouterr().out == ""
    bar.enable()
    train(tmp_path, bar)
    assert "4/4" in capsys.readouterr().out


def test_a_failure_releases_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("mom.runs.progress.Console", lambda **options: Console(**options, width=120))
    monkeypatch.setattr("mom.runs.progress.can_redraw", lambda stream: True)
    bar = StepProgressBar()
    monkeypatch.setattr(EffectiveDepth, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, bar)
    assert bar._line is None


def test_figures_that_take_long_are_counted_on_the_line(capsys, monkeypatch):
    """Drawing takes 1.5 seconds a figure; the line of training is the same afterward."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("mom.callbacks.progress.time", clock)
    monkeypatch.setitem(ProgressLine.__init__.__kwdefaults__, "clock", clock.monotonic)
    monkeypatch.setattr("mom.runs.progress.SECONDS_BETWEEN", 0.0)
    trainer = SimpleNamespace(max_steps=4, global_step=4)
    for is_training in (True, False):
        bar = StepProgressBar("mom")
        if is_training:
            bar.on_train_start(trainer, None)
            bar._line.update(4, ["loss 2.000"])
        drawn = []
        for name in bar.during(["loss", "depth", "use"], "drawing figures"):
            now[0] += 1.5
            drawn.append(name)
        assert drawn == ["loss", "depth", "use"]

    assert capsys.readouterr().out.splitlines()[2:] == [
        "mom  4/4  drawing figures 2/3",
        "mom  4/4  drawing figures 3/3",
        "mom  4/4  loss 2.000",
        "drawing figures  2/3  0:02 left",
        "drawing figures  3/3",
    ]
