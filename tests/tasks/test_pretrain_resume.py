"""A run killed at any time and resumed gives the same results as without interruption."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from mom.errors import UsageError
from mom.runs.directory import RunDirectory
from mom.tasks import pretrain
from mom.training import fit
from tests.distributed.launch import launch
from tests.distributed.scenarios import KillAt, is_timed
from tests.helpers.runs import CHANGES, tiny_request

# Dropout, biases, noise, a growing K, accumulation, and validations during accumulation: state that an inexact resume
# would lose.
PHASES = {"plain": "plain", "baseline": "baseline", "mom": "."}


def run(folder: Path, name: str, **changes):
    config = tiny_request(folder, run_dir=str(folder / name), **(CHANGES | changes))
    return pretrain.run(config, RunDirectory(folder / name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Create a folder with an uninterrupted run."""
    folder = tmp_path_factory.mktemp("resume")
    run(folder, "reference")
    return folder


class Killed(BaseException):
    """Ends the run at once, without saving."""


class FailAt(KillAt):
    """Like :class:`KillAt`, but only ends the run, not this process."""

    def kill(self) -> None:
        raise Killed


def run_until(monkeypatch, folder: Path, name: str, phase: str, **changes) -> None:
    """Start a run that dies during gradient accumulation in one of its phases."""
    build = fit.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(
            fit,
            "build_callbacks",
            lambda config, its, logs: [*([FailAt(3, 1)] if its == phase else []), *build(config, its, logs)],
        )
        with pytest.raises(Killed):
            run(folder, name, **changes)


def curve(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if not is_timed(name)} for row in rows]


def assert_equal_runs(first: Path, second: Path) -> None:
    """Compare the weights, optimizers, and curves of every phase, bit for bit."""
    for place in PHASES.values():
        one, two = (
            torch.load(directory / place / "checkpoints" / "last.ckpt", weights_only=True)
            for directory in (first, second)
        )
        for name, weight in one["state_dict"].items():
            assert torch.equal(weight, two["state_dict"][name]), (place, name)
        for index, state in one["optimizer_states"][0]["state"].items():
            for name, value in state.items():
                assert torch.equal(value, two["optimizer_states"][0]["state"][index][name]), (place, index)
        assert one["lr_schedulers"] == two["lr_schedulers"]
        assert curve(first / place) == curve(second / place), place


@pytest.mark.parametrize("phase", ["plain", "mom"])
def test_an_interrupted_phase_is_resumed_and_finished_phases_are_skipped(folder, monkeypatch, phase):
    name = f"killed-{phase}"
    run_until(monkeypatch, folder, name, phase)
    assert (folder / name / "baseline").exists() == (phase == "mom")
    before = {path: path.stat().st_mtime_ns for path in (folder / name).rglob("plain/checkpoints/last.ckpt")}
    run(folder, name, resume="auto")
    assert_equal_runs(folder / "reference", folder / name)
    if phase == "mom":
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_kill_9_in_a_process_of_its_own(folder):
    (ended,) = launch("pretraining", folder, "killed-baseline", "baseline", world_size=1)
    assert ended.code == -9, ended.output
    assert not (folder / "killed-baseline" / "checkpoints").exists()
    run(folder, "killed-baseline", resume="auto")
    assert_equal_runs(folder / "reference", folder / "killed-baseline")


def test_killed_between_a_checkpoint_and_what_would_come_next_no_row_is_lost(folder):
    """The first ``last.ckpt`` is from a validation during gradient accumulation, and is written when that ends."""
    (ended,) = launch("saving", folder, "killed-saving", world_size=1)
    assert ended.code == -9, ended.output
    saved = torch.load(folder / "killed-saving" / "plain" / "checkpoints" / "last.ckpt", weights_only=True)
    steps = [row["step"] for row in curve(folder / "killed-saving" / "plain") if "train/loss" in row]
    assert saved["global_step"] == 2 and steps == ["0", "1"]
    run(folder, "killed-saving", resume="auto")
    assert_equal_runs(folder / "reference", folder / "killed-saving")


class Vanish(Callback):
    """Removes a folder after training has started, before the first validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, *_) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def test_data_that_vanish_do_not_disturb_the_training_under_way(folder, monkeypatch):
    cache = folder / "vanishing"
    build = fit.build_callbacks
    monkeypatch.setattr(fit, "build_callbacks", lambda *given: [Vanish(cache), *build(*given)])
    run(folder, "vanished", data={"cache_dir": str(cache)})
    assert not cache.exists()
    assert_equal_runs(folder / "reference", folder / "vanished")


def cut(content: bytes) -> bytes:
    return content[:-100]


def spoil(content: bytes) -> bytes:
    """Change a byte in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, spoil])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(folder, monkeypatch, caplog, damage):
    changes = {
        "trainer": CHANGES["trainer"] | {"val_check_interval": 2},
        "task": {**CHANGES["task"], "baseline": False},
    }
    name = f"torn-{damage.__name__}"
    run_until(monkeypatch, folder, name, "mom", **changes)
    checkpoints = folder / name / "checkpoints"
    last = checkpoints / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    with caplog.at_level(logging.WARNING, "mom"):
        run(folder, name, resume="auto", **changes)
    (line,) = (one.getMessage() for one in caplog.records if "resuming from" in one.getMessage())
    assert "resume" in line.split("; ")[0]
    assert str(last) in line
    assert line.endswith(f"resuming from {checkpoints / 'previous.ckpt'} (step 2) instead")
    reference = torch.load(folder / "reference" / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    again = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(weight, again[name]) for name, weight in reference.items())


def test_two_torn_checkpoints_are_rejected_and_not_started_over(folder, monkeypatch):
    run_until(monkeypatch, folder, "lost", "mom")
    for path in (folder / "lost" / "checkpoints").iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(UsageError, match=r"^cannot load resume=.*last\.ckpt: not a complete checkpoint"):
        run(folder, "lost", resume="auto")


def test_a_checkpoint_inside_an_accumulation_window_is_for_weights_only(folder):
    best = folder / "reference" / "checkpoints" / "best.ckpt"
    saved = torch.load(best, weights_only=True)
    assert saved["inside_accumulation"] == (saved["global_step"] == 1)
    inside = folder / "interrupted" / "checkpoints" / "last.ckpt"
    inside.parent.mkdir(parents=True)
    shutil.copytree(folder / "reference" / "tokenizer", folder / "interrupted" / "tokenizer")
    torch.save(saved | {"inside_accumulation": True}, inside)
    with pytest.raises(UsageError, match=r"^cannot resume from ckpt=.*during gradient accumulation"):
        run(folder, "from-best", ckpt=str(inside))
    run(folder, "from-best", init=str(inside), task={"baseline": False})
