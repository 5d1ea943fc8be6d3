"""Log the depth of tokens and the FLOPs per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from mom.callbacks.window import WindowedStatistics, forward_flops, get_model_config, pool_names
from mom.cost.estimate import full_usage
from mom.metrics.depth import depth_metrics, depth_sums
from mom.metrics.sums import Sums, Totals


class EffectiveDepth(WindowedStatistics):
    """Logs ``depth/*``, the number of blocks that a token passes, and ``compute/*``.

    :func:`mom.metrics.depth.depth_metrics` defines each depth. Padding never counts. For a plain transformer every
    depth equals the graph's.

    ``compute/flops_per_token`` is the FLOPs of a forward pass (:mod:`mom.cost.estimate`) with the modules that the
    tokens took and the mean length of their sequences without padding; ``compute/share_of_nominal`` is its ratio to the
    FLOPs with a module in every assignment.
    """

    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        return depth_sums(outputs["routing"], outputs["attention_mask"], pool_names(pl_module))

    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        config, pools = get_model_config(pl_module), pool_names(pl_module)
        metrics = depth_metrics(totals, pools, fixed_depth=config.fixed_depth, graph_depth=config.graph_depth)
        if not metrics:
            return {}
        tokens = float(totals["histogram"].sum())
        rounds = config.graph_depth - config.fixed_depth
        used = {pool: float(totals[f"{pool}_modules"]) / (tokens * max(1, rounds)) for pool in pools}
        length = float(totals["lengths"]) / tokens
        flops = forward_flops(pl_module, length, used)
        return {f"depth/{name}": value for name, value in metrics.items()} | {
            "compute/flops_per_token": flops,
            "compute/share_of_nominal": flops / forward_flops(pl_module, length, full_usage(config)),
        }
