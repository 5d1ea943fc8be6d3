"""How deep the network is for its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from mom.callbacks.statistics import Sums, Totals, depth_metrics, depth_sums
from mom.callbacks.window import WindowedStatistics, config_of


class EffectiveDepth(WindowedStatistics):
    """Logs ``depth/*``: how many blocks a token runs through, by the definitions of DESIGN §3.

    ``depth/effective`` with ``depth/effective_{std,q10,q50,q90}`` over tokens, ``depth/effective_attention``,
    ``depth/effective_ffn``, ``depth/weighted``, ``depth/modules_per_token`` and ``depth/graph``, each in
    blocks (``modules_per_token``: in modules, a plain block counting 2);
    :func:`mom.callbacks.statistics.depth_metrics` defines each. Padding never counts. For a plain transformer
    every depth equals the graph's.
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
        return {f"depth/{name}": value for name, value in metrics.items()}
