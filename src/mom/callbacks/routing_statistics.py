"""Log which modules tokens take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mom.callbacks.window import WindowedStatistics, get_model_config, pool_names
from mom.metrics.routing import assignments_by_choice, routing_metrics, routing_sums
from mom.metrics.sums import Sums, Totals, prefixed, with_prefix

MAX_POINTS = 512
"""Points in the history, which every checkpoint holds; a longer run keeps every second logged step, and so on."""

NEED_PROBABILITIES = ("entropy", "balance_loss")


class RoutingStatistics(WindowedStatistics):
    """Logs ``routing/<pool>/{skip_rate,skip_share,load_max_over_mean,entropy,dead_fraction,first_weight,balance_loss}``
    and, in training, ``routing/<pool>/gradient_norm``.

    :func:`mom.metrics.routing.routing_metrics` defines each but the last: the Euclidean norm of the gradient of the
    pool's routers in all stages, before clipping. Padding never counts. A plain transformer logs nothing; ``entropy``
    and ``balance_loss`` are omitted if the scores are not probabilities (``score_function: identity``),
    ``gradient_norm`` if no router has parameters.

    Attributes:
        history: use of the pools at logged steps so far, evenly spaced, including those before a resumed checkpoint:
            ``steps`` [P], int64, and for each pool [P, S, N+1], assignments to each choice, SKIP last. P is at most
            :data:`MAX_POINTS`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, Tensor] = {}
        self._num_logged = 0

    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        if not outputs["routing"]:
            return {}
        sums: Sums = {}
        for pool in pool_names(pl_module):
            choices = [getattr(record, pool) for record in outputs["routing"]]
            num_stages = get_model_config(pl_module).num_stages
            sums |= prefixed(pool, routing_sums(choices, outputs["attention_mask"], num_stages=num_stages))
        return sums

    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        config = get_model_config(pl_module)
        metrics: dict[str, float] = {}
        used: dict[str, Tensor] = {}
        for pool in pool_names(pl_module):
            pool_totals = with_prefix(pool, totals)
            measured = routing_metrics(pool_totals, balance_skip=config.balance_skip)
            if config.score_function != "softmax":
                measured = {name: value for name, value in measured.items() if name not in NEED_PROBABILITIES}
            metrics |= {f"routing/{pool}/{name}": value for name, value in measured.items()}
            used[pool] = assignments_by_choice(pool_totals)
        if pl_module.trainer.training:
            self._append(pl_module.trainer.global_step, used)
        return metrics

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the norm of the routers' gradient, which here includes all micro-batches and ranks."""
        if not self.is_due(trainer):
            return
        stages = cast(Any, pl_module.model).model.stages
        for pool in pool_names(pl_module):
            routers = [getattr(stage, pool).router for stage in stages]
            gradients = [
                parameter.grad
                for router in routers
                for parameter in router.parameters()
                if parameter.grad is not None
            ]
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                pl_module.log(
                    f"routing/{pool}/gradient_norm", norm, on_step=True, on_epoch=False, batch_size=1
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the history, so that it is complete after a resume."""
        return {**self.history, _NUM_LOGGED: torch.tensor(self._num_logged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history."""
        self.history = {name: value for name, value in state_dict.items() if name != _NUM_LOGGED}
        points = len(self.history.get("steps", ()))
        self._num_logged = int(state_dict.get(_NUM_LOGGED, points))

    def _append(self, step: int, used: Mapping[str, Tensor]) -> None:
        """Add a point to the history, or skip it if the history is spaced more widely."""
        spacing, before = _spacing(self._num_logged), _spacing(self._num_logged - 1)
        if spacing > before:
            self.history = {
                name: values[:: spacing // before].clone() for name, values in self.history.items()
            }
        self._num_logged += 1
        if (self._num_logged - 1) % spacing:
            return
        point = {"steps": torch.tensor(step), **used}
        self.history = {
            name: torch.cat([self.history[name], value.unsqueeze(0)])
            if name in self.history
            else value.unsqueeze(0)
            for name, value in point.items()
        }


_NUM_LOGGED = "num_logged"


def _spacing(index: int) -> int:
    """Return how many logged steps there are for each point in the history when the step of this index is logged."""
    spacing = 1
    while index // spacing >= MAX_POINTS:
        spacing *= 2
    return spacing
