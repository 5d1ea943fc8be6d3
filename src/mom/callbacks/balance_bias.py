"""Balance routers without a loss: a bias per choice counteracts its load."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mom.callbacks.window import StepCallback, get_model_config, skipped_in_a_row, sum_over_ranks
from mom.model.losses import choice_counts, moved_bias
from mom.model.routers.router import Router


class BalanceBias(StepCallback):
    """Moves every router's ``balance_bias`` after each optimizer step, if ``balance_bias_rate`` is not 0.

    The load is summed over the step's micro-batches and over all ranks, so every rank moves its biases equally. A step
    that was skipped because of its gradient (:class:`~mom.callbacks.NonFinite`) moves none, on all ranks alike. The
    bias is a buffer of the model: checkpoints save it, and a resumed run continues exactly. Every training run has this
    callback.
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] | None = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Count this micro-batch; at the end of the optimizer step, move the biases."""
        config = get_model_config(pl_module)
        if not config.balance_bias_rate or not outputs["routing"]:
            return
        counts = choice_counts(outputs["routing"], config.num_rounds, outputs["attention_mask"])
        if self._counts is not None:
            counts = [before + now for before, now in zip(self._counts, counts, strict=True)]
        self._counts = counts
        if not self.step_has_ended(trainer):
            return
        self._counts = None
        if skipped_in_a_row(pl_module):
            return
        total = sum_over_ranks(trainer, torch.cat(counts))
        # Stage by stage, pools in the order of a round, like the counts.
        routers = [module for module in pl_module.modules() if isinstance(module, Router)]
        loads = total.split([count.numel() for count in counts])
        for router, load in zip(routers, loads, strict=True):
            assert router.balance_bias is not None
            moved = moved_bias(
                router.balance_bias,
                load,
                config.balance_bias_rate,
                open_choices=router.reachable.any(dim=0)[: router.layout.num_modules + 1],
                include_skip=config.balance_skip,
            )
            router.balance_bias.copy_(moved)
