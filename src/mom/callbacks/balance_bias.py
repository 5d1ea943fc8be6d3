"""Balancing without a loss: each choice's bias moves with its load."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mom.callbacks.window import config_of
from mom.model.losses import choice_counts, moved_bias
from mom.model.router import Router


class BalanceBias(Callback):
    """Moves every router's ``balance_bias`` after each optimizer step, where ``balance_bias_rate`` is not 0.

    The loads are those of the step's whole batch: counts are added up over its micro-batches (recomputed
    activations count once, as the records are those of the forward) and over all ranks, so that every rank
    moves alike. The bias is a buffer of the model: checkpoints hold it, and a resumed run goes on exactly.
    Every training has this callback; which models it moves is theirs to say.
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Remember which step this micro-batch belongs to."""
        self._step_before = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Count this micro-batch; after the window's last one, move the biases."""
        config = config_of(pl_module)
        if not config.balance_bias_rate or not outputs["routing"]:
            return
        counts = choice_counts(outputs["routing"], config.num_rounds, outputs["attention_mask"])
        if self._counts is not None:
            counts = [before + now for before, now in zip(self._counts, counts, strict=True)]
        self._counts = counts
        if trainer.global_step == self._step_before:
            return
        self._counts = None
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(torch.cat(counts), reduce_op="sum")
            assert isinstance(total, Tensor)
            counts = list(total.split([one.numel() for one in counts]))
        # Stage by stage, attention before feed-forward, as the counts are.
        routers = [module for module in pl_module.modules() if isinstance(module, Router)]
        for router, count in zip(routers, counts, strict=True):
            assert router.balance_bias is not None
            moved = moved_bias(
                router.balance_bias,
                count,
                config.balance_bias_rate,
                open_choices=router.reachable.any(dim=0)[: router.layout.num_modules + 1],
                include_skip=config.balance_skip,
            )
            router.balance_bias.copy_(moved)
