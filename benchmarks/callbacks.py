"""What the statistics of routing add to a training step, in one training, step by step in turn."""

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

TIERS = ("none", "brief", "detailed")
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
"""Rounds over the tiers that are not counted."""


class Stopwatch(Callback):
    """Times whole steps, and turns the statistics of each on or off: one tier after the other.

    It stands first among the callbacks, so that a step begins with it; it ends when the next begins.
    """

    def __init__(self, brief: list[WindowedStatistics], detailed: list[WindowedStatistics]) -> None:
        self.seconds: dict[str, list[float]] = {tier: [] for tier in TIERS}
        self._tier, self._start = "", 0.0
        for one in (*brief, *detailed):
            wanted = TIERS[1:] if one in brief else TIERS[2:]
            one.is_due = lambda trainer, wanted=wanted: self._tier in wanted  # type: ignore[method-assign]

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
    """Train on one batch again and again, every third step without statistics, with the brief, with both tiers.

    Args:
        model: what to train, on its device.
        ids: the batch, [B, T].
        precision: ``trainer.precision``.
        repeats: steps of each tier that count.

    Returns:
        Median seconds of each tier; ``overhead/brief``, the median over neighboring steps of what the brief tier
        adds, over the median step without; ``overhead/detailed``, the same for both tiers together; and
        ``overhead/amortized``: both as often as the defaults have them, brief in one of 10 steps, detailed in one
        of 100.
    """
    module = LanguageModelingModule(model.config.to_dict(), OPTIMIZER, model)
    brief: list[WindowedStatistics] = [EffectiveDepth(), RoutingStatistics()]
    detailed: list[WindowedStatistics] = [RoutingPaths()]
    watch = Stopwatch(brief, detailed)
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
            log_every_n_steps=steps + 1,  # the losses, which every step logs, are no statistics of routing
            callbacks=[watch, *brief, *detailed],
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]
    seconds = {tier: values[WARM_UP:] for tier, values in watch.seconds.items()}
    return overheads(seconds)


def overheads(seconds: dict[str, list[float]]) -> dict[str, float]:
    """As :func:`measure_callbacks` returns them, from the seconds of each tier's steps."""
    step = statistics.median(seconds["none"])
    added = {
        tier: statistics.median(one - none for one, none in zip(seconds[tier], seconds["none"], strict=True))
        for tier in TIERS[1:]
    }
    return {
        **{f"{tier}/seconds": statistics.median(values) for tier, values in seconds.items()},
        "overhead/brief": added["brief"] / step,
        "overhead/detailed": added["detailed"] / step,
        "overhead/amortized": (0.1 * added["brief"] + 0.01 * (added["detailed"] - added["brief"])) / step,
    }
