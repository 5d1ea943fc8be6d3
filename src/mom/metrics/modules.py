"""Records of one module: what it is, how like another it is, and what the loss is without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mom.model.pools import PoolKind  # noqa: F401 (registers the built-in kinds)
from mom.model.registry import pools as pool_kinds

KINDS = {"attention": "attention", "ffn": "FFN"}
"""What each kind of pool is called in texts and figures."""


def pool_label(name: str) -> str:
    """Return the name of a pool in texts and figures."""
    return pool_kinds[name].label if name in pool_kinds else name.replace("_", " ")


class Module(NamedTuple):
    """A module of a model: its stage, its kind (``attention`` or ``ffn``) and its number in the pool."""

    stage: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"{pool_label(self.kind)} {self.number if self.stage == 0 else f'{self.stage}.{self.number}'}"


class Pair(NamedTuple):
    """How alike two modules of one pool are; all from -1 or 0 to 1."""

    first: Module
    second: Module
    weights: float
    outputs: float
    cka: float


@dataclass(frozen=True)
class Removal:
    """What the model loses without modules.

    Attributes:
        loss: of the whole model, mean nats per token.
        alone: loss without one module; modules that cannot be spared are not in it.
        greedy: the modules in the order they were removed, each with the loss without it and all before it.
        tokens: predicted tokens that the losses are means over.
    """

    loss: float
    alone: dict[Module, float]
    greedy: list[tuple[Module, float]]
    tokens: int

    def droppable(self, tolerance: float) -> list[Module]:
        """The longest run of greedily removed modules whose loss is at most ``tolerance`` above the whole's."""
        fits = [index for index, (_, loss) in enumerate(self.greedy) if loss <= self.loss + tolerance]
        return [module for module, _ in self.greedy[: max(fits, default=-1) + 1]]
