"""A fixed random choice, the baseline that a learned router must beat."""

from __future__ import annotations

from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
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
        key = (token_ids[..., None] * 1_000_003 + round_index) * 8_191 + slots  # (B, T, slots), int64
        ranking = _hash_to_unit(key * 131 + router.salt)
        return (
            (ranking * 0).masked_fill(~reachable, float("-inf")),
            None,
            ranking.masked_fill(~reachable, float("-inf")),
        )

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        return 0


def _hash_to_unit(key: Any) -> Any:
    """Hash integers to floats in [0, 1) by multiplications, shifts, and xors within 31 bits, exact on every device."""
    mask = 0x7FFFFFFF
    value = key & mask
    for multiplier in (0x45D9F3B, 0x119DE1F3, 0x45D9F3B):
        value = ((value ^ (value >> 15)) * multiplier) & mask
    return (value ^ (value >> 16)).float() / (mask + 1.0)
