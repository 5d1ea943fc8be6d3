"""K, the modules chosen in a step, grows in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mom.callbacks.window import config_of
from mom.model import MoMConfig
from mom.model.router import Router


class TopKGrowth(Callback):
    """Starts with fewer choices than ``top_k`` and adds one at each of the steps given.

    K is ``top_k`` less the number of steps in ``at`` that are still ahead: with ``top_k: 3`` and ``at: [100, 500]``
    1, from step 100 on 2, from step 500 on 3. It depends on the step alone, so a resumed run goes on exactly. Shapes
    are static between the steps; a compiled model is compiled again at each. ``normalize_weights: auto`` goes by
    the K of the moment. Validations in between use it too.

    Args:
        at: optimizer steps of the phase, ascending, after which one more choice is made; ``None``: K stays.
    """

    def __init__(self, at: Sequence[int] | None = None) -> None:
        steps = list(at or ())
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in steps):
            raise ValueError(f"at: {steps}; integers of at least 1, or null")
        if steps != sorted(set(steps)):
            raise ValueError(f"at: {steps}; steps in ascending order, none of them twice")
        self._at = steps

    def check_fits(self, config: MoMConfig, max_steps: int) -> None:
        """Refuse steps that leave no choice at the start, or one out at the end.

        Args:
            config: of the model to be trained.
            max_steps: optimizer steps of the phase; negative: no limit.

        Raises:
            ValueError: ``at: <given>; <allowed>``.
        """
        if not self._at or not config.num_stages:
            return
        full = min(layout.num_selected() for layout in config.pools())
        if len(self._at) >= full:
            raise ValueError(f"at: {self._at}; at most {full - 1} steps, for top_k {config.top_k}")
        if 0 <= max_steps <= self._at[-1]:
            raise ValueError(f"at: {self._at}; steps before the last one, {max_steps}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set K; a resumed training may validate before its first step."""
        self.check_fits(config_of(pl_module), trainer.max_steps)
        self._set(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set the K of this micro-batch's step."""
        self._set(trainer, pl_module)

    def _set(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ahead = sum(step > trainer.global_step for step in self._at)
        for router in pl_module.modules() if self._at else ():
            if isinstance(router, Router):
                router.set_top_k(router.layout.num_selected() - ahead)
