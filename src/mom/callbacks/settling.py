"""Settle routers: from a step on, each token ID keeps the module that it took most often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mom.callbacks.window import StepCallback, get_model_config, sum_over_ranks
from mom.metrics.dependence import counts_by_token
from mom.model.routers.router import Router
from mom.model.routing import by_pool


class SettleChoices(StepCallback):
    """Settles the choices of every router after ``settle_steps`` optimizer steps, if the option is set.

    A token ID keeps the module that it took most often in the second half of these steps, counted round by round over
    all micro-batches and ranks. The result is a buffer of the model, which checkpoints save. A router whose choices
    have settled before, in an earlier phase, keeps them. Every training run has this callback.
    """

    def __init__(self) -> None:
        self._step: list[Tensor] = []  # this rank's counts in the current optimizer step
        self._total: list[Tensor] = []  # all ranks' counts in earlier steps

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far, so that a resumed run settles as an undisturbed one."""
        return {"counts": self._total}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from the counts of a checkpoint."""
        self._total = list(state_dict["counts"])

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Count this micro-batch; at the end of the last step, settle."""
        config, step = get_model_config(pl_module), self._global_step_before
        assert step is not None
        if config.settle_steps is None or not config.settle_steps // 2 <= step < config.settle_steps:
            return
        # Stage by stage, pools in the order of a round, like the records.
        routers = [module for module in pl_module.modules() if isinstance(module, Router)]
        records = zip(routers, by_pool(outputs["routing"], config.num_rounds), strict=True)
        counts = [
            counts_by_token(choices, batch["input_ids"], outputs["attention_mask"], config.vocab_size)
            for router, choices in records
            if router.settled is not None
        ]
        self._step = _added(self._step, counts)
        if not self.step_has_ended(trainer):
            return
        self._total = _added(self._total, [sum_over_ranks(trainer, count) for count in self._step])
        self._step = []
        if trainer.global_step == config.settle_steps:
            settling = [router for router in routers if router.settled is not None]
            for router, count in zip(settling, self._total, strict=True):
                assert router.settled is not None
                if not bool(torch.any(router.settled >= 0)):
                    router.settle(count[..., :-1])  # without SKIP
            self._total = []


def _added(totals: list[Tensor], counts: list[Tensor]) -> list[Tensor]:
    return [a + b.to(a.device) for a, b in zip(totals, counts, strict=True)] if totals else counts
