"""Log how a token's choices differ between rounds, and depend on its ID: the detailed metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mom.callbacks.window import WindowedStatistics, get_model_config, is_logged_at_interval, pool_names
from mom.config.checks import in_range
from mom.metrics.dependence import counts_by_token, dependence_of_counts, sample_rounds
from mom.metrics.routing import agreement_sums, distinct_sums, path_keys
from mom.metrics.sums import Sums, Totals, prefixed

THOUSAND = 1000


class RoutingPaths(WindowedStatistics):
    """Logs ``routing/<pool>/agreement``, ``routing/paths_per_thousand_tokens``, and for validations
    ``routing/<pool>/token_dependence``.

    ``agreement`` is the fraction of steps in which the router's first choice is the same as in the previous round of
    the stage; SKIP is a choice like the others. It is 1 if all rounds choose the same, and 1/(N+1) for random choices.

    ``paths_per_thousand_tokens``: a token's path is the modules it took in every round and pool, in any order within a
    step. This is the number of distinct paths among a thousand consecutive real tokens of a rank, averaged over the
    window. It ranges from 1 (all tokens alike) to 1000 (all different). Tokens after the last complete thousand are
    skipped, and a window without a complete thousand on any rank does not log it.

    Validations also log ``val/routing/<pool>/token_dependence``: the share of the first choices' entropy that the
    token's ID determines (:mod:`mom.metrics.dependence`), over all tokens and ranks; 0 if choices do not depend on it,
    1 if a table by ID would choose the same. A training step has too few tokens.

    These detailed metrics read the number of real tokens back to the host, so in training only the first logged step
    in every ``every_n_steps`` steps is measured; every validation is. A plain transformer logs nothing.

    Args:
        every_n_steps: minimum number of optimizer steps between two measurements.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__()
        in_range("callbacks.routing_paths.every_n_steps", every_n_steps, ge=1)
        self.every_n_steps = every_n_steps
        # For the training window (True) and the validation window (False), which may overlap.
        self._remainder: dict[bool, Tensor] = {}
        self._ids: Tensor | None = None  # token IDs of the measured validation batch, [B, T]

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether the current step is the first logged one in its interval."""
        return is_logged_at_interval(trainer, self.every_n_steps)

    def start_window(self, *, training: bool) -> None:
        """Restart counting thousands."""
        self._remainder.pop(training, None)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *given: Any, **named: Any
    ) -> None:
        """Add this batch."""
        batch = named["batch"] if "batch" in named else given[0]
        self._ids = batch["input_ids"]
        super().on_validation_batch_end(trainer, pl_module, outputs, *given, **named)
        self._ids = None

    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        routing = outputs["routing"]
        if not routing:
            return {}
        mask, num_stages = outputs["attention_mask"], get_model_config(pl_module).num_stages
        sums: Sums = {}
        for pool in pool_names(pl_module):
            choices = [getattr(record, pool) for record in routing]
            sums |= prefixed(pool, agreement_sums(choices, mask, num_stages=num_stages))
            if self._ids is not None:
                size = get_model_config(pl_module).vocab_size
                sums[f"{pool}/by_token"] = counts_by_token(
                    sample_rounds(choices, size), self._ids, mask, size
                )
        keys = path_keys(routing)[mask.bool()]  # (B, T) → (real tokens,)
        if pl_module.training in self._remainder:
            keys = torch.cat([self._remainder[pl_module.training], keys])
        complete = len(keys) // THOUSAND * THOUSAND
        self._remainder[pl_module.training] = keys[complete:]
        return sums | distinct_sums(keys[:complete].view(-1, THOUSAND))

    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        found = {
            f"routing/{pool}/agreement": float(totals[f"{pool}/agreeing"] / totals[f"{pool}/pairs"])
            for pool in pool_names(pl_module)
            if totals[f"{pool}/pairs"] > 0
        }
        for pool in pool_names(pl_module):
            if f"{pool}/by_token" in totals:
                share = dependence_of_counts(totals[f"{pool}/by_token"].numpy())
                if not math.isnan(share):
                    found[f"routing/{pool}/token_dependence"] = share
        if totals["thousands"] > 0:
            found["routing/paths_per_thousand_tokens"] = float(totals["distinct"] / totals["thousands"])
        return found

    def log_step(self, trainer: Trainer, pl_module: LightningModule, metrics: dict[str, float]) -> None:
        """Log directly, because Lightning would repeat the values at every later logged step."""
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # Lightning counts the current step
