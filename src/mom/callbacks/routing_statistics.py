"""Which modules the tokens take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mom.callbacks.window import WindowedStatistics, config_of
from mom.metrics.routing import POOLS, routing_metrics, routing_sums, use_by_slot
from mom.metrics.sums import Sums, Totals

NEED_PROBABILITIES = ("entropy", "balance_loss")


class RoutingStatistics(WindowedStatistics):
    """Logs ``routing/{attention,ffn}/{skip_rate,skip_share,load_max_over_mean,entropy,dead_fraction}``,
    ``routing/{attention,ffn}/{first_weight,balance_loss}`` and, in training,
    ``routing/{attention,ffn}/gradient_norm``.

    :func:`mom.metrics.routing.routing_metrics` defines each but the last: the Euclidean norm of the
    gradient of the routers of all stages, at the optimizer step, before clipping. ``skip_rate`` is the share of
    token-steps in which no module ran, which is what saves computation; ``skip_share`` the share of the K
    places that SKIP holds. Padding never counts. A plain transformer has no routing and logs nothing;
    ``entropy`` and ``balance_loss`` are left out where the scores are no probabilities (``score_function:
    identity``), ``gradient_norm`` where no router has parameters.

    Attributes:
        history: use of the pools at each logged step of the training so far, checkpoints included: for
            ``steps`` [P], int64, and for each pool [P, S, N+1], places held by each slot, SKIP last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, Tensor] = {}

    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        config = config_of(pl_module)
        if not outputs["routing"]:
            return {}
        sums: Sums = {}
        for pool in POOLS:
            measured = routing_sums(
                [getattr(record, pool) for record in outputs["routing"]],
                outputs["attention_mask"],
                num_modules=getattr(config, f"num_{pool}_modules"),
                num_stages=config.num_stages,
            )
            sums |= {f"{pool}/{name}": value for name, value in measured.items()}
        return sums

    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        config = config_of(pl_module)
        metrics: dict[str, float] = {}
        used: dict[str, Tensor] = {}
        for pool in POOLS:
            own = _of(pool, totals)
            measured = routing_metrics(own, balance_skip=config.balance_skip)
            if config.score_function != "softmax":
                measured = {name: one for name, one in measured.items() if name not in NEED_PROBABILITIES}
            metrics |= {f"routing/{pool}/{name}": value for name, value in measured.items()}
            used[pool] = use_by_slot(own)
        if pl_module.trainer.training:
            self._remember(pl_module.trainer.global_step, used)
        return metrics

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the norm of the routers' gradient, which is whole here: all micro-batches and ranks."""
        if not self.is_due(trainer):
            return
        stages = cast(Any, pl_module.model).model.stages
        for pool in POOLS:
            routers = [getattr(stage, pool).router for stage in stages]
            gradients = [
                one.grad for router in routers for one in router.parameters() if one.grad is not None
            ]
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                pl_module.log(
                    f"routing/{pool}/gradient_norm", norm, on_step=True, on_epoch=False, batch_size=1
                )

    def state_dict(self) -> dict[str, Any]:
        """The history, so that it is whole after a resume."""
        return dict(self.history)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history."""
        self.history = dict(state_dict)

    def _remember(self, step: int, used: Mapping[str, Tensor]) -> None:
        """Add a point to the history."""
        point = {"steps": torch.tensor(step), **used}
        self.history = {
            name: torch.cat([self.history[name], value.unsqueeze(0)])
            if name in self.history
            else value.unsqueeze(0)
            for name, value in point.items()
        }


def _of(pool: str, totals: Totals) -> Totals:
    """One pool's totals by their own names."""
    prefix = f"{pool}/"
    return {name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)}
