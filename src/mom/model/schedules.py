"""Which modules a round may choose, and which it prefers at first: tables over rounds and choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

    @classmethod
    def attention(cls, config: MoMConfig) -> PoolLayout:
        """The layout of each stage's attention pool."""
        slots = config.num_skip_slots
        return cls(
            "attention", config.num_attention_modules, slots, config.num_rounds, config.schedule, config.skip
        )

    @classmethod
    def ffn(cls, config: MoMConfig) -> PoolLayout:
        """The layout of each stage's feed-forward pool."""
        slots = config.num_skip_slots if config.ffn_skip_slots is None else config.ffn_skip_slots
        schedule = config.schedule if config.ffn_schedule is None else config.ffn_schedule
        skip = config.skip if config.ffn_skip is None else config.ffn_skip
        return cls("ffn", config.num_ffn_modules, slots, config.num_rounds, schedule, skip)

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
        return int(self.reachable().sum(dim=1).min())

    def num_selected(self, top_k: int | str) -> int:
        """Places K per step: ``top_k``, or every slot for ``"all"``."""
        return self.num_slots if isinstance(top_k, str) else top_k

    def reachable(self) -> Tensor:
        """Which slots each round may choose, boolean [H, slots].

        ``all``: every module. ``layerwise``: round h only module h mod N. ``grouped``: the pool is split into
        consecutive groups as even as can be, one for each round (a pool smaller than the number of rounds is
        walked in order, some modules twice). SKIP is added to each round if the pool has it.
        """
        table = torch.zeros(self.num_rounds, self.num_slots, dtype=torch.bool)
        for round_index in range(self.num_rounds):
            table[round_index, self._modules_of(round_index)] = True
        table[:, self.num_modules :] = self.skip
        return table

    def _modules_of(self, round_index: int) -> slice:
        if self.schedule == "layerwise":
            module = round_index % self.num_modules
            return slice(module, module + 1)
        if self.schedule == "grouped":
            first = round_index * self.num_modules // self.num_rounds
            last = (round_index + 1) * self.num_modules // self.num_rounds
            return slice(first, max(last, first + 1))
        return slice(0, self.num_modules)

    def prior(self, kind: str, strength: float) -> Tensor:
        """The preference each round starts with, float [H, slots], in units of the temperature.

        Round h < N: module h gets ``2 * strength``, SKIP ``strength``. Later rounds: SKIP gets ``2 * strength``
        and, for ``looped``, module h mod N gets ``strength``. Everything else 0. DESIGN: the recipe's prior.
        """
        table = torch.zeros(self.num_rounds, self.num_slots)
        for round_index in range(self.num_rounds):
            module = round_index % self.num_modules
            if round_index < self.num_modules:
                table[round_index, module] = 2 * strength
                table[round_index, self.num_modules :] = strength
            else:
                table[round_index, self.num_modules :] = 2 * strength
                if kind == "looped":
                    table[round_index, module] = strength
        return table
