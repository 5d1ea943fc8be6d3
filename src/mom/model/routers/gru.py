"""The paper's router."""

from __future__ import annotations

from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.kind import HiddenRouterKind


@register_router("gru")
class GRU(HiddenRouterKind):
    """A GRU cell over rounds with a linear output, so that choices depend on earlier choices (paper, section 3.2)."""

    def layers(self, options: ModelOptions, layout: PoolLayout) -> dict[str, Any]:
        from torch import nn

        width = self.width(options)
        return {"cell": nn.GRUCell(options.d_model, width), "output": nn.Linear(width, layout.num_slots)}

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        before = None if state is None else state.flatten(0, 1)
        after = router.cell(x.flatten(0, 1), before).view(*x.shape[:2], -1)  # (B, T, router_dim)
        return router.output(after), after

    def state_size(self, options: ModelOptions, layout: PoolLayout) -> int:
        return self.width(options)

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        state = self.width(options)
        return 2 * state * (3 * options.d_model + 3 * state + layout.num_slots)
