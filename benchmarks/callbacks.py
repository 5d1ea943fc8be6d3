"""Measure the overhead of the routing statistics, with callbacks switched on and off from step to step."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mom.callbacks import EffectiveDepth, RoutingPaths, RoutingStatistics
from mom.callbacks.window import WindowedStatistics
from mom.cost.machine import synchronize
from mom.model import MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule

TIERS = ("none", "basic", "detailed")
OPTIMIZER = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-5,
    "warmup_steps": 0,
    "min_lr_ratio": 0.1,
    "router_lr_multiplier": 1.0,
    "schedule": "constant",
}
WARM_UP = 2
"""Rounds over the tiers that are not measured."""


class Stopwatch(Callback):
    """Times training steps, cycling through the tiers of statistics.

    It must be the first callback, because a step is timed from its first callback to that of the next step.
    """

    def __init__(self, basic: list[WindowedStatistics], detailed: list[WindowedStatistics]) -> None:
        self.seconds: dict[str, list[float]] = {tier: [] for tier in TIERS}
        self._tier, self._start = "", 0.0
        for callback in (*basic, *detailed):
            tiers = TIERS[1:] if callback in basic else TIERS[2:]
            callback.is_due = lambda trainer, tiers=tiers: self._tier in tiers  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._mark(pl_module)
        self._tier = TIERS[batch_idx % len(TIERS)]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark(pl_module)

    def _mark(self, pl_module: LightningModule) -> None:
        synchronize(pl_module.device.type)
        now = time.perf_counter()
        if self._tier:
            self.seconds[self._tier].append(now - self._start)
        self._start = now


def measure_callbacks(model: MoMForCausalLM, ids: Tensor, precision: str, repeats: int) -> dict[str, float]:
    """Train on a repeated batch, alternating between no, basic, and all statistics.

    Args:
        model: the model, on its device.
        ids: the batch, (B, T).
        precision: ``trainer.precision``.
        repeats: measured steps per tier.

    Returns:
        The median seconds of each tier; ``overhead/basic``, the median difference between adjacent steps with and
        without the basic metrics, relative to the median step without; ``overhead/detailed``, the same for basic and
        detailed metrics; and ``overhead/amortized``, with the default intervals of 10 and 100 steps.
    """
    module = LanguageModelingModule(model.config.to_dict(), OPTIMIZER, model)
    basic: list[WindowedStatistics] = [EffectiveDepth(), RoutingStatistics()]
    detailed: list[WindowedStatistics] = [RoutingPaths()]
    watch = Stopwatch(basic, detailed)
    steps = len(TIERS) * (repeats + WARM_UP)
    batch = {"input_ids": ids.cpu(), "labels": ids.cpu()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cuda" if ids.device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_steps=steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            log_every_n_steps=steps + 1,  # exclude the losses, which are logged every step
            callbacks=[watch, *basic, *detailed],
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
    seconds = {tier: values[WARM_UP:] for tier, values in watch.seconds.items()}
    return overheads(seconds)


def overheads(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Compute the results of :func:`measure_callbacks` from the seconds of each tier's steps."""
    step = statistics.median(seconds["none"])
    added = {
        tier: statistics.median(
            with_tier - none for with_tier, none in zip(seconds[tier], seconds["none"], strict=True)
        )
        for tier in TIERS[1:]
    }
    return {
        **{f"{tier}/seconds": statistics.median(values) for tier, values in seconds.items()},
        "overhead/basic": added["basic"] / step,
        "overhead/detailed": added["detailed"] / step,
        "overhead/amortized": (0.1 * added["basic"] + 0.01 * (added["detailed"] - added["basic"])) / step,
    }
