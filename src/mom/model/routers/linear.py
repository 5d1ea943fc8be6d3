"""A router with a single layer."""

from __future__ import annotations

from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.kind import RouterKind


@register_router("linear")
class Linear(RouterKind):
    """A linear layer without state."""

    def layers(self, options: ModelOptions, layout: PoolLayout) -> dict[str, Any]:
        from torch import nn

        return {"output": nn.Linear(options.d_model, layout.num_slots)}

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        return router.output(x), None

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        return 2 * options.d_model * layout.num_slots
