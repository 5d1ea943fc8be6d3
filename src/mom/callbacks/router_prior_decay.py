"""The routers' prior, taken away bit by bit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor, distribute_tensor

from mom.model.router import Router


class RouterPriorDecay(Callback):
    """Takes what ``router_prior`` put in front of the routers away again, in equal parts over ``steps`` steps.

    The prior is a learned bias on each round's choices. A strong one keeps an upcycled model the plain
    transformer that it came from; without one the routers start over. Decay goes from the first to the second
    while the routers learn: after step s of the phase the prior has lost ``min(s, steps) / steps`` of its initial
    value, and whatever was learned on top stays. What is taken depends on the step alone, so a resumed run goes
    on exactly.

    Args:
        steps: optimizer steps over which it goes; ``None`` leaves the prior as it is.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps: {steps}; an integer of at least 1, or null")
        self._steps = steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Remember which step this micro-batch belongs to."""
        self._step_before = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """After each of the first ``steps`` optimizer steps, take away its part."""
        if self._steps is None or not self._step_before < trainer.global_step <= self._steps:
            return
        for router in pl_module.modules():
            if isinstance(router, Router) and router.prior is not None:
                part = router.initial_prior().to(router.prior.device) / self._steps
                if isinstance(router.prior, DTensor):
                    part = distribute_tensor(part, router.prior.device_mesh, router.prior.placements)
                router.prior.sub_(part)
