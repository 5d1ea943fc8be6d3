"""What the detailed tier says: how a token's choices of one round go with those of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mom.callbacks.window import WindowedStatistics, config_of, is_logged_at_interval
from mom.config.checks import in_range
from mom.metrics.routing import POOLS, agreement_sums, distinct_sums, path_keys
from mom.metrics.sums import Sums, Totals

THOUSAND = 1000


class RoutingPaths(WindowedStatistics):
    """Logs ``routing/{attention,ffn}/agreement`` and ``routing/paths_per_thousand_tokens``.

    ``agreement`` is the share of token-steps in which the router's first choice is that of the round before, in
    the same stage; SKIP is a choice like the others. 1: every round does the same; a router that chose anew at
    random would agree in 1 of N+1.

    ``paths_per_thousand_tokens``: a token's path is, for every round and pool, which modules it took, in
    whatever order. Of each thousand real tokens after one another, the number of different paths; the mean over
    the thousands of the window, each rank's own. From 1 (all tokens alike) to 1000 (all different). Tokens after
    the last whole thousand are left out, and a window that has no thousand on any rank logs none.

    This is the detailed tier, which reads the number of real tokens back: of training it measures the first
    logged step in every ``every_n_steps`` steps; of validations every one. A plain transformer logs nothing.

    Args:
        every_n_steps: optimizer steps between two measured ones, at least.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__()
        in_range("callbacks.routing_paths.every_n_steps", every_n_steps, ge=1)
        self.every_n_steps = every_n_steps
        # Of the window of training and of that of a validation, which may come in the middle of the other.
        self._left_over: dict[bool, Tensor] = {}

    def is_due(self, trainer: Trainer) -> bool:
        """Of the steps that are logged, the first in each interval."""
        return is_logged_at_interval(trainer, self.every_n_steps)

    def start_window(self, *, training: bool) -> None:
        """Start counting thousands anew."""
        self._left_over.pop(training, None)

    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        config, routing = config_of(pl_module), outputs["routing"]
        if not routing:
            return {}
        mask = outputs["attention_mask"]
        sums: Sums = {}
        for pool in POOLS:
            measured = agreement_sums(
                [getattr(one, pool) for one in routing], mask, num_stages=config.num_stages
            )
            sums |= {f"{pool}/{name}": value for name, value in measured.items()}
        keys = path_keys(routing)[mask.bool()]  # (B, T) → (real tokens,)
        if pl_module.training in self._left_over:
            keys = torch.cat([self._left_over[pl_module.training], keys])
        whole = len(keys) // THOUSAND * THOUSAND
        self._left_over[pl_module.training] = keys[whole:]
        return sums | distinct_sums(keys[:whole].view(-1, THOUSAND))

    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        found = {
            f"routing/{pool}/agreement": float(totals[f"{pool}/agreeing"] / totals[f"{pool}/pairs"])
            for pool in POOLS
            if totals[f"{pool}/pairs"] > 0
        }
        if totals["thousands"] > 0:
            found["routing/paths_per_thousand_tokens"] = float(totals["distinct"] / totals["thousands"])
        return found

    def log_step(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        """Tell the loggers here: what is logged through Lightning it repeats at every logged step that follows."""
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # Lightning counts the step under way
