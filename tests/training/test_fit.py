"""One phase of training: what it writes, how it ends and is interrupted, and how it resumes."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import OmegaConf

from mom.config.composition import composed
from mom.data.language_modeling import LanguageModelingDataModule
from mom.model import MoMForCausalLM
from mom.model.modeling import MoMModel
from mom.runs.directory import RunDirectory
from mom.runs.signals import SIGNALS, Interrupted
from mom.training import fit, trainer
from mom.training.checkpoint import read_checkpoint
from mom.training.fit import fit_phase
from tests.helpers.runs import tiny_request
from tests.test_configs import CONF


class AtStep(Callback):
    """Runs an action at the end of an optimizer step."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            self.action()


@pytest.fixture
def extra(monkeypatch) -> list[Callback]:
    """Return a list of callbacks that are added to those of the request."""
    callbacks: list[Callback] = []
    build = fit.build_callbacks
    monkeypatch.setattr(fit, "build_callbacks", lambda *given: [*callbacks, *build(*given)])
    return callbacks


def train(folder: Path, name: str = "run", resume: Path | None = None, **changes) -> dict[str, float]:
    """Train one phase of the tiny request in ``folder/name``."""
    config = tiny_request(folder, **changes)
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    seed_everything(config.seed, verbose=False)
    model = MoMForCausalLM(config.model_config(data.vocab_size))
    return fit_phase(
        config,
        model,
        data,
        RunDirectory(folder / name),
        phase="mom",
        max_steps=config.trainer.max_steps,
        resume=None if resume is None else read_checkpoint(resume),
    )


def test_csv_and_tensorboard_have_the_same_names(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = composed(CONF, ["logger=many", "~logger.wandb"]).logger
    train(tmp_path, logger=OmegaConf.to_container(loggers), trainer={"max_steps": 2, "val_check_interval": 2})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    names = {*curve(tmp_path / "run"), "epoch"}
    assert "val/loss" in names and set(events.Tags()["scalars"]) == names


def test_a_profiled_run_leaves_its_report_and_starts_with_the_parts_of_the_model(tmp_path, capsys):
    train(tmp_path, trainer={"max_steps": 1, "val_check_interval": 1, "profiler": "simple"})
    out = capsys.readouterr().out
    assert all(part in out for part in ("embeddings", "routers", "FLOPs per token", "blocks deep"))
    (report,) = (tmp_path / "run").glob("*profile*")
    assert "run_training_batch" in report.read_text()


def curve(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Return (step, value as written) of every metric in ``metrics.csv``."""
    found: dict[str, list[tuple[int, str]]] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    found.setdefault(name, []).append((int(row["step"]), value))
    return found


def state(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_a_phase_writes_its_curve_and_checkpoints_and_returns_its_last_validation(tmp_path):
    results = train(tmp_path)
    written = curve(tmp_path / "run")
    assert [step for step, _ in written["train/loss"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in written["val/loss"]] == [2, 5]
    assert float(written["val/loss"][-1][1]) == pytest.approx(results["val/loss"])
    assert float(written["val/depth/effective"][-1][1]) == pytest.approx(results["depth/effective"])
    for name in ("routing/ffn/skip_rate", "learning_rate/matrices", "throughput/tokens", "depth/weighted"):
        assert name in written or name.startswith("learning_rate")
    assert [float(value) for _, value in written["throughput/tokens"]] == [32.0 * n for n in range(1, 7)]
    assert results["steps"] == 6
    assert results["depth/graph"] == 6
    assert results["throughput/tokens_per_second"] > 0
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(file.name for file in checkpoints.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]
    assert state(checkpoints / "previous.ckpt")["global_step"] == 3
    assert state(checkpoints / "last.ckpt")["global_step"] == 6
    losses = {step: float(value) for step, value in written["val/loss"]}
    assert state(checkpoints / "best.ckpt")["global_step"] - 1 == min(losses, key=losses.__getitem__)


def test_the_last_step_is_validated_and_logged_whatever_the_intervals(tmp_path):
    results = train(tmp_path, trainer={"max_steps": 5, "val_check_interval": 3, "log_every_n_steps": 4})
    written = curve(tmp_path / "run")
    assert [step for step, _ in written["val/loss"]] == [2, 4]
    assert [step for step, _ in written["train/loss"]] == [3, 4]
    assert written["train/loss"][0][1] != written["train/loss"][1][1]
    assert results["val/loss"] == pytest.approx(float(written["val/loss"][-1][1]))
    assert state(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 5


def test_last_is_kept_even_where_no_validation_is_the_best(tmp_path):
    # The learning rate is too high, so the first validation stays the best.
    train(tmp_path, seed=3, optimizer={"lr": 3.0, "warmup_steps": 3})
    checkpoints = tmp_path / "run" / "checkpoints"
    assert state(checkpoints / "best.ckpt")["global_step"] == 3
    assert state(checkpoints / "last.ckpt")["global_step"] == 6


def test_an_interval_may_be_a_share_of_the_epoch(tmp_path):
    train(tmp_path, trainer={"max_steps": 3, "val_check_interval": 0.01})
    assert len(curve(tmp_path / "run")["val/loss"]) >= 3


def test_without_callbacks_and_loggers_the_losses_and_the_last_checkpoint_remain(tmp_path):
    results = train(tmp_path, callbacks=None, logger=None)
    assert results["val/loss"] > 0
    assert "depth/effective" not in results
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = sorted(path.name for path in files if path.parent.name != "tokenizer")
    assert names == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_after_the_step_keeps_a_checkpoint_and_resumes_exactly(tmp_path, extra, number):
    changes = {"model": {"dropout": 0.1}}
    train(tmp_path, "reference", **changes)
    signal.signal(number, before := lambda *_: None)
    extra.append(AtStep(4, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(Interrupted) as raised:
        train(tmp_path, "run", **changes)
    assert raised.value.number == number
    assert signal.getsignal(number) is before
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert state(last)["global_step"] == 4

    extra.clear()
    results = train(tmp_path, "run", resume=last, **changes)
    assert results["steps"] == 6
    reference, resumed = (
        state(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("reference", "run")
    )
    for name, weight in reference["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    once, twice = curve(tmp_path / "reference"), curve(tmp_path / "run")
    for name in once:
        # The other throughput metrics depend on the time.
        if not name.startswith("throughput/") or name in ("throughput/tokens", "throughput/training_flops"):
            assert twice[name] == once[name]


def test_a_second_signal_stops_at_once_and_leaves_the_checkpoint_alone(tmp_path, extra):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    extra.append(AtStep(4, twice))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert state(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_failure_leaves_the_last_checkpoint_intact(tmp_path, extra):
    def fail() -> None:
        raise RuntimeError("the data file vanished")

    extra.append(AtStep(5, fail))
    with pytest.raises(RuntimeError, match="vanished"):
        train(tmp_path)
    assert state(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_finished_run_gone_on_with_changes_nothing(tmp_path):
    first = train(tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    files = [
        path for path in (tmp_path / "run").rglob("*") if path.is_file() and "tokenizer" not in path.parts
    ]
    before = {path: path.read_bytes() for path in files}
    assert train(tmp_path, resume=checkpoints / "last.ckpt") == first
    assert {path: path.read_bytes() for path in files} == before
    assert state(checkpoints / "best.ckpt").keys() == state(checkpoints / "last.ckpt").keys() - {"results"}


def test_a_finished_run_is_lengthened_without_repeating_a_logged_step(tmp_path):
    train(tmp_path, trainer={"max_steps": 3, "val_check_interval": 2})
    assert [step for step, _ in curve(tmp_path / "run")["val/loss"]] == [1, 2]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(tmp_path, resume=last, trainer={"max_steps": 5, "val_check_interval": 2})
    written = curve(tmp_path / "run")
    assert [step for step, _ in written["train/loss"]] == [0, 1, 2, 3, 4]
    assert [step for step, _ in written["val/loss"]] == [1, 2, 3, 4]
    assert state(last)["results"]["steps"] == 5


def test_a_checkpoint_without_results_is_validated_again_and_nothing_is_logged(tmp_path):
    first = train(tmp_path)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    earlier = {name: value for name, value in state(last).items() if name != "results"}
    torch.save(earlier, last)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    again = train(tmp_path, resume=last)
    assert again["val/loss"] == first["val/loss"]
    assert again["depth/effective"] == first["depth/effective"]
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["step", "validation"])
def test_a_stop_requested_at_the_last_step_waits_for_its_validation(tmp_path, extra, name):
    reference = train(tmp_path, "reference")

    class AtTheEnd(Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if name == "step" and trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)

        def on_validation_start(self, trainer, *_) -> None:
            if name == "validation" and trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)

    extra.append(AtTheEnd())
    with pytest.raises(Interrupted, match="SIGUSR1"):
        train(tmp_path)
    last = state(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 6
    assert last["results"]["val/loss"] == reference["val/loss"]
    assert curve(tmp_path / "run")["val/loss"] == curve(tmp_path / "reference")["val/loss"]


def test_lightning_is_quiet(tmp_path, capfd, recwarn, monkeypatch):
    monkeypatch.setattr("mom.training.fit.print_table", lambda table: None)  # the model's summary is ours
    train(tmp_path, "first")  # prepares the corpus, which shows a progress bar
    capfd.readouterr()
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))  # a GPU that is not used
    train(tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert [str(warning.message) for warning in recwarn if "lightning" in str(warning.filename)] == []


@pytest.mark.parametrize("wanted", [True, False])
def test_bfloat16_on_the_cpu_trains_and_memory_is_kept_where_wanted(tmp_path, monkeypatch, wanted):
    asked = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: asked.append(True))
    options = {
        "precision": "bf16-mixed",
        "max_steps": 2,
        "val_check_interval": 2,
        "keep_freed_memory": wanted,
    }
    results = train(tmp_path, trainer=options)
    assert 4 < results["val/loss"] < 7  # 300 tokens: ln 300 is 5.7
    assert 0 < results["throughput/mfu"] < 1
    assert bool(asked) is wanted


def test_compiled_layers_train_to_the_same_losses(tmp_path, monkeypatch):
    compiled = []
    compile_layers = MoMModel.compile_layers
    monkeypatch.setattr(
        MoMModel,
        "compile_layers",
        lambda self, **options: compiled.append(compile_layers(self, backend="aot_eager", **options)),
    )
    results = train(tmp_path, "eager")
    assert not compiled
    assert train(tmp_path, "compiled", trainer={"compile": True})["val/loss"] == pytest.approx(
        results["val/loss"], abs=1e-5
    )
    assert len(compiled) == 1
    assert state(tmp_path / "compiled/checkpoints/last.ckpt")["state_dict"].keys() == (
        state(tmp_path / "eager/checkpoints/last.ckpt")["state_dict"].keys()
    )
