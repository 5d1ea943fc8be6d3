"""How fast training goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.callbacks.window import logs_next_step


class ThroughputMonitor(Callback):
    """Logs ``throughput/tokens_per_second`` and ``throughput/tokens``, over all ranks, at every logged step.

    ``throughput/tokens_per_second`` is the rate since the step logged before: forward, backward, optimiser,
    data loading and logging, without the time spent in validation and in writing checkpoints.
    ``throughput/tokens`` counts the tokens trained on since step 0, those before a resumed checkpoint
    included.

    Lightning's callback of this name says nothing until a window of 100 steps is full, has names of its own,
    and waits for the GPU in every micro-batch; this one waits only where it logs.
    """

    def __init__(self) -> None:
        self._tokens_before = 0
        self._reset()

    def _reset(self) -> None:
        self._tokens = 0
        self._active = 0.0  # seconds of training, up to the last mark
        self._running_since: float | None = None
        self._first_mark = (0.0, 0)  # after the first step, which also pays for warming up
        self._last_mark = (0.0, 0)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of the whole training, without its first step if there were more."""
        start = self._first_mark if self._tokens > self._first_mark[1] else (0.0, 0)
        return _rate(start, (self._active, self._tokens))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing: a callback may see several trainings."""
        self._reset()
        self._running_since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Remember which step this micro-batch belongs to; go on after a validation."""
        self._step_before, self._logs = trainer.global_step, logs_next_step(trainer)
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Count the micro-batch; after the last one of a logged step, log."""
        self._tokens += batch["input_ids"].numel() * trainer.world_size
        if trainer.global_step == self._step_before:
            return
        if self._first_mark[1] == 0:
            self._stop_clock(trainer)
            self._running_since = time.perf_counter()
            self._first_mark = (self._active, self._tokens)
        if not self._logs:
            return
        self._stop_clock(trainer)
        self._running_since = time.perf_counter()
        mark = (self._active, self._tokens)
        metrics = {"throughput/tokens": float(self._tokens_before + self._tokens)}
        rate = _rate(self._last_mark, mark)
        if rate is not None:
            metrics["throughput/tokens_per_second"] = rate
        self._last_mark = mark
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock until the next training batch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_clock(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop_clock(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Tokens trained on so far."""
        return {"tokens": self._tokens_before + self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint stopped."""
        self._tokens_before = state_dict["tokens"]

    def _stop_clock(self, trainer: Trainer) -> None:
        if self._running_since is None:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # the steps so far have run, not only been queued
        self._active += time.perf_counter() - self._running_since
        self._running_since = None


def _rate(start: tuple[float, int], end: tuple[float, int]) -> float | None:
    """Tokens per second between two (seconds, tokens) marks."""
    seconds, tokens = end[0] - start[0], end[1] - start[1]
    return tokens / seconds if seconds > 0 and tokens > 0 else None
