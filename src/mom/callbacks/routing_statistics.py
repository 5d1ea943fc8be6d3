"""Which modules the tokens take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from mom.callbacks.statistics import POOLS, Sums, Totals, routing_metrics, routing_sums
from mom.callbacks.window import WindowedStatistics, config_of


class RoutingStatistics(WindowedStatistics):
    """Logs ``routing/{attention,ffn}/{skip_rate,skip_share,load_max_over_mean,entropy,dead_fraction}``.

    :func:`mom.callbacks.statistics.routing_metrics` defines each. ``skip_rate`` is the share of token-steps
    in which no module ran, which is what saves computation; ``skip_share`` the share of the K places that
    SKIP holds. Padding never counts. A plain transformer has no routing and logs nothing; ``entropy`` is left
    out where the scores are no probabilities (``score_function: identity``).
    """

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
        metrics: dict[str, float] = {}
        for pool in POOLS:
            prefix = f"{pool}/"
            own = {
                name.removeprefix(prefix): value for name, value in totals.items() if name.startswith(prefix)
            }
            measured = routing_metrics(own)
            if config_of(pl_module).score_function != "softmax":
                measured.pop("entropy", None)
            metrics |= {f"routing/{prefix}{name}": value for name, value in measured.items()}
        return metrics
