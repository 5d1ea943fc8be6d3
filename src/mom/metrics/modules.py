"""Records about single modules: their similarity, and the loss without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mom.metrics.names import pool_label


class Module(NamedTuple):
    """A module of a model: its stage, its pool (``kind``), and its number in the pool."""

    stage: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{pool_label(self.kind)} {self.number if self.stage == 0 else f'{self.stage}.{self.number}'}"


class Pair(NamedTuple):
    """The similarity of two modules of one pool; each measure ranges from -1 or 0 to 1."""

    first: Module
    second: Module
    weights: float
    outputs: float
    cka: float


@dataclass(frozen=True)
class Removal:
    """The loss of a model without some of its modules.

    Attributes:
        loss: loss of the complete model, mean nats per token.
        alone: loss without each module that can be removed.
        greedy: modules in order of removal, each with the loss without it and all modules before it.
        tokens: number of predicted tokens that losses are averaged over.
    """

    loss: float
    alone: dict[Module, float]
    greedy: list[tuple[Module, float]]
    tokens: int

    def droppable(self, tolerance: float) -> list[Module]:
        """Return the longest prefix of the greedy order that increases the loss by at most ``tolerance``."""
        within = [index for index, (_, loss) in enumerate(self.greedy) if loss <= self.loss + tolerance]
        return [module for module, _ in self.greedy[: max(within, default=-1) + 1]]
