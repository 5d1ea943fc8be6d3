"""Modules in a fixed order, without a learned choice."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.kind import RouterKind


@register_router("sequential")
class Sequential(RouterKind):
    """Chooses module h mod N in round h with weight 1; the other K-1 assignments go to SKIP with weight 0."""

    learns = False

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        return x.new_zeros(*x.shape[:2], router.layout.num_slots).float(), None

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        return 0

    def open_slots(self, router: Any, round_index: int) -> Any:
        """Return the only module of a round, regardless of the schedule."""
        slots = router.reachable.new_zeros(router.layout.num_slots)
        slots[round_index % router.layout.num_modules] = True
        return slots

    def can_spare(self, modules: Collection[int]) -> bool:
        return not modules

    def may_skip(self, layout: PoolLayout) -> bool:
        return False

    def most_choices(self, layout: PoolLayout) -> int:
        return layout.num_slots

    def most_modules(self, layout: PoolLayout) -> float:
        return 1.0
