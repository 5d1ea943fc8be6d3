"""A router with two layers."""

from __future__ import annotations

from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.kind import HiddenRouterKind


@register_router("mlp")
class MLP(HiddenRouterKind):
    """Two linear layers with a ReLU between them, without state."""

    def layers(self, options: ModelOptions, layout: PoolLayout) -> dict[str, Any]:
        from torch import nn

        width = self.width(options)
        return {"input": nn.Linear(options.d_model, width), "output": nn.Linear(width, layout.num_slots)}

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        return router.output(router.input(x).relu()), None

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        return 2 * self.width(options) * (options.d_model + layout.num_slots)
