"""Which modules a round may choose, and which it prefers at first: tables over rounds and choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mom.model.configuration import MoMConfig


@dataclass(frozen=True)
class PoolLayout:
    """One pool as its router sees it: N modules, the slots that mean SKIP, and the rounds that choose.

    A *slot* is one router output. Slots 0 … N-1 are modules, the ``num_skip_slots`` after them all mean SKIP
    (one, except in checkpoints of the authors' code).
    """

    name: str
    num_modules: int
    num_skip_slots: int
    num_rounds: int
    schedule: str
    skip: bool
    top_k: int | str

    @classmethod
    def attention(cls, config: MoMConfig) -> PoolLayout:
        """The layout of each stage's attention pool."""
        slots = config.num_skip_slots
        return cls(
            "attention",
            config.num_attention_modules,
            slots,
            config.num_rounds,
            config.schedule,
            config.skip,
            config.top_k,
        )

    @classmethod
    def ffn(cls, config: MoMConfig) -> PoolLayout:
        """The layout of each stage's feed-forward pool."""
        slots = config.num_skip_slots if config.ffn_skip_slots is None else config.ffn_skip_slots
        schedule = config.schedule if config.ffn_schedule is None else config.ffn_schedule
        skip = config.skip if config.ffn_skip is None else config.ffn_skip
        top_k = config.top_k if config.ffn_top_k is None else config.ffn_top_k
        return cls("ffn", config.num_ffn_modules, slots, config.num_rounds, schedule, skip, top_k)

    @property
    def num_slots(self) -> int:
        """Router outputs: modules and SKIP slots."""
        return self.num_modules + self.num_skip_slots

    def most_choices(self, router: str) -> int:
        """The largest ``top_k`` that every round can fill.

        ``sequential`` picks one module and fills the other places with SKIP whatever the schedule says.
        """
        if router == "sequential":
            return self.num_slots
        return min(sum(row) for row in self.reachable())

    def num_selected(self) -> int:
        """Places K per step: ``top_k``, or every slot for ``"all"``."""
        return self.num_slots if isinstance(self.top_k, str) else self.top_k

    def most_modules(self, router: str) -> float:
        """Modules that a token runs in a step at most, on average over the rounds."""
        if router == "sequential":
            return 1.0
        places = self.num_selected()
        return (
            sum(min(places, len(self._modules_of(one))) for one in range(self.num_rounds)) / self.num_rounds
        )

    def layers(self) -> list[int]:
        """The plain layer of its stage, counted from 0, that each module is a copy of when upcycled.

        Module i comes from layer i. In a ``grouped`` pool with a group for each round, round h is layer h and all
        modules of its group come from it (Komatsuzaki et al. 2023, sparse upcycling).
        """
        if self.schedule != "grouped" or self.num_modules < self.num_rounds:
            return list(range(self.num_modules))
        groups = [self._modules_of(one) for one in range(self.num_rounds)]
        return [layer for layer, group in enumerate(groups) for _ in group]

    def reachable(self) -> list[list[bool]]:
        """Which slots each round may choose, [H][slots].

        ``all``: every module. ``layerwise``: round h only module h mod N. ``grouped``: the pool is split into
        consecutive groups as even as can be, one for each round (a pool smaller than the number of rounds is
        walked in order, some modules twice). SKIP is added to each round if the pool has it.
        """
        table = []
        for round_index in range(self.num_rounds):
            modules = self._modules_of(round_index)
            row = [slot in modules for slot in range(self.num_modules)]
            table.append(row + [self.skip] * self.num_skip_slots)
        return table

    def _modules_of(self, round_index: int) -> range:
        if self.schedule == "layerwise":
            module = round_index % self.num_modules
            return range(module, module + 1)
        if self.schedule == "grouped":
            first = round_index * self.num_modules // self.num_rounds
            last = (round_index + 1) * self.num_modules // self.num_rounds
            return range(first, max(last, first + 1))
        return range(self.num_modules)

    def prior(self, kind: str, strength: float) -> list[list[float]]:
        """The preference each round starts with, [H][slots], in units of the temperature.

        Round h < N: module h gets ``2 * strength``, SKIP ``strength``. Later rounds: SKIP gets ``2 * strength``
        and, for ``looped``, module h mod N gets ``strength``. Everything else 0. In a ``grouped`` pool every round
        prefers its whole group in the place of module h. DESIGN: the recipe's prior.
        """
        table = [[0.0] * self.num_slots for _ in range(self.num_rounds)]
        skip_slots = list(range(self.num_modules, self.num_slots))
        for round_index, row in enumerate(table):
            grouped = self.schedule == "grouped"
            module = list(self._modules_of(round_index)) if grouped else [round_index % self.num_modules]
            if grouped or round_index < self.num_modules:
                first, second = module, skip_slots
            else:
                first, second = skip_slots, module if kind == "looped" else []
            for slot in first:
                row[slot] = 2 * strength
            for slot in second:
                row[slot] = strength
        return table
