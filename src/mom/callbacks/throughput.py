"""Measure training throughput."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mom.callbacks.window import StepCallback, forward_flops, get_model_config, logs_next_step
from mom.cost.estimate import measured_usage
from mom.cost.machine import matmul_dtype, peak_flops

log = logging.getLogger(__name__)


class ThroughputMonitor(StepCallback):
    """Logs these metrics over all ranks at every logged step:

    - ``throughput/tokens_per_second``: rate since the previous logged step, including forward and backward passes,
      optimizer, data loading, and logging, excluding validation and checkpoints.
    - ``throughput/tokens``: tokens trained on since step 0, including those before a resumed checkpoint.
    - ``throughput/training_flops``: FLOPs of training on these tokens; tokens since the previous logged step count with
      the modules per token of the last micro-batch.
    - ``throughput/flops``: useful FLOP/s, counting three forward passes per training step (:mod:`mom.cost.estimate`)
      with the modules per token of the last micro-batch on this rank. Recomputation (``activation_checkpointing``) does
      not count as useful.
    - ``throughput/mfu``: its fraction of the devices' peak: the manufacturer's figure for a GPU that Lightning knows,
      else the rate of a large matmul in the same precision, measured once at the start.

    Unlike Lightning's callback of the same name, it logs from the first step on and synchronizes the GPU only at logged
    steps.
    """

    def __init__(self) -> None:
        self._tokens_before = 0
        self._flops_before = 0.0
        self._pending_before = (0, 0)
        self._reset()

    def _reset(self) -> None:
        self._tokens = 0
        self._active = 0.0  # seconds of training, up to the last mark
        self._running_since: float | None = None
        self._first_mark = (0.0, 0)  # after the first step, which includes warm-up
        self._last_mark = (0.0, 0)
        self._flops = 0.0  # training FLOPs up to the last logged step
        # Tokens since the last logged step, and the sum of their sequence lengths.
        self._pending, self._lengths = self._pending_before
        self._flops_per_token: float | None = None
        self._peak: float | None = None

    @property
    def mfu(self) -> float | None:
        """``throughput/mfu`` of all of training, with the modules per token of the last logged step."""
        if self.tokens_per_second is None or self._flops_per_token is None or self._peak is None:
            return None
        return self.tokens_per_second * self._flops_per_token / self._peak

    @property
    def training_flops(self) -> float:
        """``throughput/training_flops`` up to the last logged step."""
        return self._flops_before + self._flops

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second over all of training, excluding the first step if there are more."""
        start = self._first_mark if self._tokens > self._first_mark[1] else (0.0, 0)
        return _rate(start, (self._active, self._tokens))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counts, since a callback may be used in several fits."""
        self._reset()
        dtype = matmul_dtype(trainer.precision)
        rate, source = peak_flops(trainer.strategy.root_device, dtype)
        self._peak = rate * trainer.world_size
        _log_info(
            f"MFU peak: {rate / 1e9:,.0f} GFLOP/s per device ({str(dtype).removeprefix('torch.')}), {source}"
        )
        self._running_since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Check whether this step is logged; restart the clock after a validation."""
        super().on_train_batch_start(trainer, pl_module)
        self._logs = logs_next_step(trainer)
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Count the micro-batch; after the last micro-batch of a logged step, log."""
        tokens = batch["input_ids"].numel() * trainer.world_size
        self._tokens += tokens
        self._pending += tokens
        self._lengths += tokens * batch["input_ids"].shape[1]
        if not self.step_has_ended(trainer):
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
        self._flops_per_token = _training_flops(pl_module, outputs, self._lengths / self._pending)
        self._flops += self._pending * self._flops_per_token
        self._pending = self._lengths = 0
        metrics = {
            "throughput/tokens": float(self._tokens_before + self._tokens),
            "throughput/training_flops": self.training_flops,
        }
        rate = _rate(self._last_mark, mark)
        if rate is not None:
            metrics["throughput/tokens_per_second"] = rate
            metrics["throughput/flops"] = rate * self._flops_per_token
            assert self._peak is not None  # set when training started
            metrics["throughput/mfu"] = metrics["throughput/flops"] / self._peak
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
        """Return the tokens trained on so far, their FLOPs, and the tokens since the last logged step."""
        return {
            "tokens": self._tokens_before + self._tokens,
            "flops": self.training_flops,
            "pending": (self._pending, self._lengths),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from the checkpoint."""
        self._tokens_before = state_dict["tokens"]
        self._flops_before = state_dict["flops"]
        self._pending_before = state_dict["pending"]

    def _stop_clock(self, trainer: Trainer) -> None:
        if self._running_since is None:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # the steps so far have run, not just been queued
        self._active += time.perf_counter() - self._running_since
        self._running_since = None


def _rate(start: tuple[float, int], end: tuple[float, int]) -> float | None:
    """Return the tokens per second between two (seconds, tokens) marks."""
    seconds, tokens = end[0] - start[0], end[1] - start[1]
    return tokens / seconds if seconds > 0 and tokens > 0 else None


def _training_flops(pl_module: LightningModule, outputs: Mapping[str, Any], length: float) -> float:
    """Return the useful FLOPs of a training step, per token, with the modules that this batch used."""
    config = get_model_config(pl_module)
    return 3 * forward_flops(pl_module, length, measured_usage(config, outputs["routing"]))


@rank_zero_only
def _log_info(message: str) -> None:
    log.info(message)
