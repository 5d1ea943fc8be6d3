"""A fixed random choice, the baseline that a learned router must beat."""

from __future__ import annotations

from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.hashing import hashed_ranking
from mom.model.routers.kind import RouterKind


@register_router("random")
class Random(RouterKind):
    """A fixed random choice per token ID and round, uniform over the reachable slots.

    The choice is a hash of token ID, round, slot, and pool, so it is the same in every batch, device, and process, and
    needs no table.
    """

    learns = False

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        if token_ids is None:
            raise ValueError(
                "router=random requires input_ids: its choice is per token id, got inputs_embeds"
            )
        reachable = router.reachable[round_index]  # (slots,)
        slots = reachable.long().fill_(1).cumsum(0) - 1
        ranking = hashed_ranking(token_ids, round_index, slots, router.salt)  # (B, T, slots)
        return (
            (ranking * 0).masked_fill(~reachable, float("-inf")),
            None,
            ranking.masked_fill(~reachable, float("-inf")),
        )

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        return 0
