"""Facts: chains of relations over a random table of facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mom.data.controls.control import Control, Examples, answers_only, register_control

if TYPE_CHECKING:
    from torch import Tensor


@register_control("facts")
class Facts(Control):
    """Compositions of facts (e, r) → e' from a random table.

    A sequence is an entity e, ``hops`` relations, and the answer: the entity reached from e by the relations in turn.
    Shorter chains are filled with the identity relation, and every chain that is shorter than ``hops`` is trained on.
    Of the chains of ``hops`` relations, those with a fact that is never composed and a random ``held_out_fraction`` of
    the others are not. Buckets: ``hop1`` and so on for the shorter chains; ``hop<n>_seen`` and ``hop<n>_held_out`` for
    those of ``hops`` relations, all of whose facts were composed in training; ``partly_never_composed`` and
    ``never_composed`` for those with some facts, and only facts, that never were.

    In the order ``operand_first`` the token that the answer follows names the last relation, so a fixed choice per
    token id can do well. In ``operand_last`` that token is the entity and tells nothing about the relations.

    Args:
        entities: number of entities.
        relations: number of relations.
        hops: relations of the longest chains.
        order: ``operand_first`` is ``e r1 r2``, ``operand_last`` is ``r2 r1 e``.
        held_out_fraction: fraction of the longest chains held out.
        never_composed_fraction: fraction of the facts that training shows alone only.
    """

    seed: int = 1234
    entities: int = 24
    relations: int = 12
    hops: int = 2
    order: Literal["operand_first", "operand_last"] = "operand_first"
    held_out_fraction: float = 0.2
    never_composed_fraction: float = 0.1

    def _check(self) -> None:
        super()._check()
        self._range("entities", ge=2, le=1000)
        self._range("relations", ge=1, le=1000)
        self._range("hops", ge=2, le=3)
        self._range("held_out_fraction", gt=0, lt=1)
        self._range("never_composed_fraction", ge=0, lt=1)

    @property
    def vocab_size(self) -> int:
        """The entities, the relations, and the identity relation."""
        return self.entities + self.relations + 1

    @property
    def sequence_length(self) -> int:
        """An entity, the relations, and the answer."""
        return self.hops + 2

    @property
    def chance(self) -> float:
        """One entity in all."""
        return 1 / self.entities

    @property
    def headline(self) -> str:
        """Held-out chains."""
        return f"hop{self.hops}_held_out"

    @property
    def buckets(self) -> tuple[str, ...]:
        """The shorter chains, the seen and the held-out chains, and those of facts that were never composed."""
        shorter = (f"hop{hops}" for hops in range(1, self.hops))
        rare = ("partly_never_composed", "never_composed") if self.never_composed_fraction else ()
        return (*shorter, f"hop{self.hops}_seen", self.headline, *rare)

    def training(self) -> Examples:
        """Generate the seen chains once, and the chains of each shorter length repeated to about a quarter of them."""
        import torch

        *shorter, seen = self._chains()[: self.hops]
        repeated = [rows.repeat(max(1, len(seen) // len(rows) // 4), 1) for rows in shorter]
        rows = torch.cat([seen, *repeated])
        return Examples(rows, answers_only(rows), rows.new_zeros(len(rows)))

    def validation(self) -> Examples:
        """Generate every chain once."""
        import torch

        chains = self._chains()
        rows, sizes = torch.cat(chains), torch.tensor([len(part) for part in chains])
        return Examples(rows, answers_only(rows), torch.arange(len(sizes)).repeat_interleave(sizes))

    def _chains(self) -> list[Tensor]:
        """Return the sequences of each bucket, int64 (M, T)."""
        import torch

        random = torch.Generator().manual_seed(self.seed)
        table = torch.randint(self.entities, (self.entities, self.relations), generator=random)
        lone = torch.rand(self.entities, self.relations, generator=random) < self.never_composed_fraction
        chains = []
        for hops in range(1, self.hops + 1):
            steps = [torch.arange(self.relations)] * hops
            grid = torch.cartesian_prod(torch.arange(self.entities), *steps)
            entity, num_lone = grid[:, 0], torch.zeros(len(grid), dtype=torch.int64)
            for relation in grid.T[1:]:
                num_lone += lone[entity, relation]
                entity = table[entity, relation]
            chains.append(self._sequences(grid, entity))
        held_out = torch.rand(len(entity), generator=random) < self.held_out_fraction
        longest, composed = chains.pop(), num_lone == 0
        split = [composed & ~held_out, composed & held_out]
        if self.never_composed_fraction:
            split += [(num_lone > 0) & (num_lone < self.hops), num_lone == self.hops]
        return [*chains, *(longest[mask] for mask in split)]

    def _sequences(self, chains: Tensor, answers: Tensor) -> Tensor:
        """Write chains, the entity and the relations (M, 1 + n), as tokens (M, T)."""
        import torch

        identity = self.entities + self.relations
        entity, relations = chains[:, :1], self.entities + chains[:, 1:]
        filler = torch.full((len(chains), self.hops - relations.shape[1]), identity)
        parts = [entity, relations, filler]
        if self.order == "operand_last":
            parts = [filler, relations.flip(1), entity]
        return torch.cat([*parts, answers[:, None]], dim=1)
