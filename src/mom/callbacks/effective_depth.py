"""How deep the network is for its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from mom.callbacks.window import WindowedStatistics, config_of, forward_flops
from mom.cost.estimate import nominal_usage
from mom.metrics.depth import depth_metrics, depth_sums
from mom.metrics.sums import Sums, Totals


class EffectiveDepth(WindowedStatistics):
    """Logs ``depth/*``: how many blocks a token runs through, by the definitions of DESIGN §3.

    ``depth/effective`` with ``depth/effective_{std,q10,q50,q90}`` over tokens, ``depth/effective_attention``,
    ``depth/effective_ffn``, ``depth/weighted``, ``depth/modules_per_token`` and ``depth/graph``, each in
    blocks (``modules_per_token``: in modules, a plain block counting 2);
    :func:`mom.metrics.depth.depth_metrics` defines each. Padding never counts. For a plain transformer
    every depth equals the graph's.

    From the same counts ``compute/flops_per_token``, the FLOPs of a forward pass (:mod:`mom.cost.estimate`) at
    the modules that the tokens took and the mean length of their sequences, padding excluded; and
    ``compute/share_of_nominal``, that over what it would be with a module in every place.
    """

    def measure(self, pl_module: LightningModule, outputs: Mapping[str, Any]) -> Sums:
        config = config_of(pl_module)
        return depth_sums(
            outputs["routing"],
            outputs["attention_mask"],
            num_attention_modules=config.num_attention_modules,
            num_ffn_modules=config.num_ffn_modules,
        )

    def metrics(self, pl_module: LightningModule, totals: Totals) -> dict[str, float]:
        config = config_of(pl_module)
        metrics = depth_metrics(totals, fixed_depth=config.fixed_depth, graph_depth=config.graph_depth)
        if not metrics:
            return {}
        tokens = float(totals["histogram"].sum())
        rounds = config.graph_depth - config.fixed_depth
        used = {
            pool.name: float(totals[f"{pool.name}_modules"]) / (tokens * max(1, rounds))
            for pool in config.pools()
        }
        length = float(totals["lengths"]) / tokens
        flops = forward_flops(pl_module, length, used)
        return {f"depth/{name}": value for name, value in metrics.items()} | {
            "compute/flops_per_token": flops,
            "compute/share_of_nominal": flops / forward_flops(pl_module, length, nominal_usage(config)),
        }
