"""A custom router that multiplies two projections of each token.

Name this module in ``plugins`` (or import it) and choose it with ``router.router=bilinear router.bilinear_rank=16``.
"""

from typing import Any

from torch import nn

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions, option
from mom.model.registry import register_router
from mom.model.routers import RouterKind


@register_router("bilinear")
class Bilinear(RouterKind):
    """Two projections, multiplied elementwise, then a linear layer; no state."""

    bilinear_rank: int = option(32, "width of the two projections", group="router", ge=1)

    def layers(self, options: ModelOptions, layout: PoolLayout) -> dict[str, Any]:
        left, right = (nn.Linear(options.d_model, self.bilinear_rank) for _ in range(2))
        return {"left": left, "right": right, "output": nn.Linear(self.bilinear_rank, layout.num_slots)}

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        return router.output(router.left(x) * router.right(x)), None
