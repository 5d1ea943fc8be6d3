"""The training loop of the trainer: validation next to training, and what callbacks add to a step."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from benchmarks.report import Measured
from benchmarks.timing import ratios
from mom.config import DataConfig, RunConfig, bind
from mom.config.composition import composed
from mom.model import MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule
from mom.training.trainer import build_callbacks, build_trainer

CONF = Path(__file__).resolve().parents[1] / "conf"
SMALL = (
    "model=mom_small",
    "data.tokenizer_vocab_size=50257",
    "data.sequence_length=1024",
    "data.batch_size=2",
)
"""Overrides of the quickstart for the size ``small``."""

WARM_UP = 2
"""Steps that are not measured."""

INSIDE = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
AROUND = ("on_train_batch_start", "on_train_batch_end")
"""Hooks of a step, inside and around what Lightning's profiler calls a training batch."""


def validation(*overrides: str, repeats: int = 5) -> Measured:
    """Measure the tokens per second of the trainer's validation, divided by those of its training.

    Each training step, with clipping and AdamW, is followed by a validation of a batch of the same size. Only losses
    are computed, without callbacks.
    """
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        request = _request(Path(folder), *overrides, "trainer.val_check_interval=1")
        _fit(request, WARM_UP + repeats, [watch])
    seconds = {name: values[WARM_UP:] for name, values in watch.seconds.items()}
    return Measured.of(ratios(seconds, "training", "validation"), seconds)


class _Stopwatch(Callback):
    """Times the batches of training, with the optimizer, and those of validation."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"training": [], "validation": []}
        self._start = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    on_validation_batch_start = on_train_batch_start

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.seconds["training"].append(time.perf_counter() - self._start)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self.seconds["validation"].append(time.perf_counter() - self._start)


def callbacks(*overrides: str, steps: int = 100, repeats: int = 2) -> Measured:
    """Measure the time in the quickstart's callbacks, as a fraction of the rest of the training steps.

    These are all default callbacks but those that save checkpoints and draw figures: progress bar in a terminal,
    statistics at their intervals, norms of gradients, throughput, schedules. Lightning's profiler times their hooks.
    """
    seconds: dict[str, list[float]] = {"callbacks": [], "steps": []}
    with tempfile.TemporaryDirectory() as folder, _terminal() as stdout:
        omitted = ("callbacks.checkpoint=null", "callbacks.figures=null", "trainer.limit_val_batches=0")
        request = _request(Path(folder), *overrides, *omitted)
        for _ in range(repeats):
            profiler = SimpleProfiler()
            with contextlib.redirect_stdout(stdout):
                _fit(request, WARM_UP + steps, build_callbacks(request, "train", has_loggers=False), profiler)
            inside, around = (_seconds_in(profiler, hooks, steps) for hooks in (INSIDE, AROUND))
            batches = sum(profiler.recorded_durations["run_training_batch"][WARM_UP:])
            seconds["callbacks"].append(inside + around)
            seconds["steps"].append(batches - inside)
    return Measured.of(ratios(seconds, "callbacks", "steps"), seconds)


def _seconds_in(profiler: SimpleProfiler, hooks: Sequence[str], steps: int) -> float:
    """Return the seconds that all callbacks spent in these hooks of the steps after the warm-up."""
    total = 0.0
    for name, durations in profiler.recorded_durations.items():
        if name.startswith("[Callback]") and name.rpartition(".")[2] in hooks:
            per_step = len(durations) // (WARM_UP + steps)  # callbacks of one class may share a name
            total += sum(durations[WARM_UP * per_step :])
    return total


def _request(folder: Path, *overrides: str) -> RunConfig:
    """Return the request of a training on the CPU with these overrides of the quickstart."""
    options = (f"run_dir='{folder}'", "trainer=cpu", "trainer.limit_val_batches=1")
    return bind(composed(CONF, [*options, *overrides]))


def _fit(
    config: RunConfig, steps: int, callbacks: Sequence[Callback], profiler: SimpleProfiler | None = None
) -> None:
    """Train a new model on random tokens."""
    assert isinstance(config.data, DataConfig)
    torch.manual_seed(0)
    model_config = config.model_config(config.data.tokenizer_vocab_size)
    module = LanguageModelingModule(
        model_config.to_dict(), dataclasses.asdict(config.optimizer), MoMForCausalLM(model_config)
    )
    ids = torch.randint(model_config.vocab_size, (config.data.batch_size, config.data.sequence_length))
    loader = DataLoader([{"input_ids": ids, "labels": ids}] * steps, batch_size=None)  # type: ignore[arg-type]
    trainer = build_trainer(config, Path(config.run_dir), steps, list(callbacks), [])
    if profiler is not None:
        trainer.profiler = profiler
    trainer.fit(module, loader, loader)


@contextlib.contextmanager
def _terminal() -> Iterator[Any]:
    """Yield a stream to a terminal whose output is discarded, so that lines are redrawn as for a user."""
    controller, terminal = os.openpty()

    def discard() -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            while os.read(controller, 4096):
                pass

    thread = threading.Thread(target=discard)
    thread.start()
    try:
        with open(terminal, "w", encoding="utf-8") as stream:
            yield stream
    finally:
        thread.join()
        os.close(controller)
