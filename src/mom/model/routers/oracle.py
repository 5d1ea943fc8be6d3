"""Choices that the caller knows to be right, the upper bound of a task whose rule is known."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.kind import RouterKind


@register_router("oracle")
class Oracle(RouterKind):
    """Takes every choice from the model's argument ``choices`` (:mod:`mom.model.choices`).

    The modules of a token share the weight equally; SKIP has weight 0 next to a module. A round with a single slot to
    choose from needs no choices.
    """

    learns = False
    needs_choices = True

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        return x.new_zeros(*x.shape[:2], router.layout.num_slots).float(), None

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        return 0

    def open_slots(self, router: Any, round_index: int) -> Any:
        """Return the single slot of a round; if there are several, none until the caller chooses."""
        slots = router.reachable[round_index]  # (slots,)
        return slots & (slots.sum() == 1)

    def can_spare(self, modules: Collection[int]) -> bool:
        return not modules
