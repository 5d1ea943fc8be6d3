"""The layout of a pool: which modules each round may choose, and which it initially prefers."""

from __future__ import annotations

# ruff: noqa: RUF009 (`option` makes a dataclass field)
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mom.model.declaration import declared, option
from mom.model.registry import InvalidOption, one_of
from mom.model.registry import pools as pool_kinds

Schedule = Literal["all", "layerwise", "grouped"]
TopK = int | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class PoolLayout:
    """The choices of a pool in every stage; built by :meth:`mom.model.options.ModelOptions.pools`.

    A router has an output, or *slot*, for each of the N modules, followed by ``num_skip_slots`` outputs that mean SKIP
    (one, except in checkpoints of the authors' code).

    Attributes:
        name: the pool's name, ``attention`` or ``ffn`` by default.
        kind: a :class:`mom.model.pools.PoolKind`.
        router: a :class:`mom.model.routers.RouterKind`.
        position: position in a round, counted from 0.
        num_modules: modules N.
        num_skip_slots: router outputs that mean SKIP.
        num_rounds: rounds H of a stage.
        top_k: choices K per step, or ``all``.
        schedule: ``all``, ``layerwise`` or ``grouped``.
        skip: whether SKIP may be chosen.
        skip_rule: ``share`` or ``first``.
        capacity: share of the tokens that each module takes; ``None`` if tokens choose.
    """

    name: str
    kind: Any
    router: Any
    position: int
    num_modules: int
    num_skip_slots: int
    num_rounds: int
    top_k: int | str
    schedule: str
    skip: bool
    skip_rule: str = "share"
    capacity: float | None = None

    @property
    def label(self) -> str:
        """The pool's name in tables and figures."""
        return self.kind.label if self.name == self.kind.name else self.name.replace("_", " ")

    @property
    def num_slots(self) -> int:
        """Router outputs: modules and SKIP slots."""
        return self.num_modules + self.num_skip_slots

    def num_selected(self) -> int:
        """Return the assignments K per step: ``top_k``, or every slot for ``all``."""
        return self.num_slots if isinstance(self.top_k, str) else self.top_k

    def may_skip(self) -> bool:
        """Return whether a token can run no module in a step, because all K assignments can go to SKIP."""
        alone = self.num_selected() == 1 or self.skip_rule == "first"
        return self.skip and (alone or self.capacity is not None) and self.router.may_skip(self)

    def most_choices(self) -> int:
        """Return the largest ``top_k`` that every round can fill."""
        return self.router.most_choices(self)

    def most_modules(self) -> float:
        """Return the maximum number of modules that a token runs in a step, averaged over rounds."""
        return self.router.most_modules(self)

    def has_choice(self) -> bool:
        """Return whether any round chooses among modules, not only between a module and SKIP."""
        return any(len(self.modules_of(h)) > 1 for h in range(self.num_rounds))

    def has_weak_prior(self, round_index: int) -> bool:
        """Return whether a round may start with a weak preference for one module (``cyclic``, ``hashed``).

        It would only weaken SKIP in rounds with one module and in pools whose modules choose tokens (``capacity``).
        """
        return self.capacity is None and len(self.modules_of(round_index)) > 1

    def modules_per_token(self, round_index: int) -> float:
        """Return the most modules that a token of a stage runs in a round, averaged over tokens."""
        share = 1.0 if self.capacity is None else self.capacity
        return min(self.num_selected(), len(self.modules_of(round_index)) * share)

    def layers(self) -> list[int]:
        """Return the plain layer, counted from 0 in its stage, that upcycling copies each module from.

        Module i comes from layer i. In a ``grouped`` pool with a group for each round, round h is layer h and all
        modules of its group come from it (sparse upcycling, Komatsuzaki et al. 2023).
        """
        if self.schedule != "grouped" or self.num_modules < self.num_rounds:
            return list(range(self.num_modules))
        return [h for h in range(self.num_rounds) for _ in self.modules_of(h)]

    def reachable(self) -> list[list[bool]]:
        """Return which slots each round may choose, [H][slots].

        ``all``: every module. ``layerwise``: only module h mod N in round h. ``grouped``: the pool is split into
        consecutive groups, as even as possible, one for each round (with fewer modules than rounds, some modules are in
        two groups). SKIP is added to each round if the pool has it.
        """
        table = []
        for round_index in range(self.num_rounds):
            modules = self.modules_of(round_index)
            row = [slot in modules for slot in range(self.num_modules)]
            table.append(row + [self.skip] * self.num_skip_slots)
        return table

    def modules_of(self, round_index: int) -> range:
        """Return the modules that a round may choose."""
        if self.schedule == "layerwise":
            module = round_index % self.num_modules
            return range(module, module + 1)
        if self.schedule == "grouped":
            first = round_index * self.num_modules // self.num_rounds
            last = (round_index + 1) * self.num_modules // self.num_rounds
            return range(first, max(last, first + 1))
        return range(self.num_modules)

    def prior(self, kind: str, strength: float) -> list[list[float]]:
        """Return the initial preference of each round, [H][slots], in units of the temperature.

        ``cyclic`` gives ``strength`` to the modules i with i = h modulo N or H, whichever is less, in round h, and 0 to
        everything else, in rounds that have it (:meth:`has_weak_prior`). ``hashed`` depends on the token and is not in
        this table.

        With the other kinds, module h gets ``2 * strength`` and SKIP ``strength`` in round h < N. In later rounds, SKIP
        gets ``2 * strength`` and, for ``looped``, module h mod N gets ``strength``. Everything else gets 0. In a
        ``grouped`` pool every round prefers its entire group instead of module h.
        """
        if kind == "cyclic":
            period = min(self.num_modules, self.num_rounds)
            rounds = range(self.num_rounds)
            preferred = [
                range(h % period, self.num_modules if self.has_weak_prior(h) else 0, period) for h in rounds
            ]
            return [[strength * (slot in chosen) for slot in range(self.num_slots)] for chosen in preferred]
        table = [[0.0] * self.num_slots for _ in range(self.num_rounds)]
        if kind in ("none", "hashed"):
            return table
        skip_slots = list(range(self.num_modules, self.num_slots))
        for round_index, row in enumerate(table):
            grouped = self.schedule == "grouped"
            module = list(self.modules_of(round_index)) if grouped else [round_index % self.num_modules]
            if grouped or round_index < self.num_modules:
                first, second = module, skip_slots
            else:
                first, second = skip_slots, module if kind == "looped" else []
            for slot in first:
                row[slot] = 2 * strength
            for slot in second:
                row[slot] = strength
        return table


# Pools as users write them: a list of kinds, or a mapping from names to entries such as `{kind: ffn, top_k: 1}`.


@dataclass(kw_only=True)
class _Entry:
    """The keys of a pool's entry, next to its kind and that kind's own options."""

    num_modules: int = option(4, "modules in a stage's pool", ge=1)
    top_k: TopK = option(2, "choices K per step; as the model's by default", ge=1)
    schedule: Schedule = option("all", "modules a round may choose; as the model's by default")
    skip: bool = option(True, "let tokens choose SKIP; as the model's by default")
    capacity: float | None = option(
        None, "share of the tokens that each module takes; as the model's by default", gt=0, le=1
    )


ENTRY_OPTIONS = declared(_Entry)
"""Options of every pool's entry, by name."""

RESERVED = "anchor, dropout"
"""Names that a pool cannot have, because other parts of a stage have them."""

_NOT_POOLS = {*RESERVED.split(", "), "layouts", "training", "forward", "assemble", "count", "index"}


def named_entries(pools: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return (name, entry) of each pool, from a mapping, or from a list of kinds or of entries with a name."""
    if isinstance(pools, Mapping):
        return [(name, {} if entry is None else entry) for name, entry in pools.items()]
    entries = [{"name": item} if isinstance(item, str) else dict(item) for item in pools]
    return [(entry.pop("name", None), entry) for entry in entries]


def entries_as_list(pools: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    """Return the pools as a list, which keeps its order in files that sort the keys of mappings."""
    if not isinstance(pools, Mapping):
        return list(pools)
    return [{"name": name, **entry} for name, entry in named_entries(pools)]


def check_entries(pools: Mapping[str, Any] | Sequence[Any]) -> None:
    """Check the names, kinds, and entries of pools; raise :class:`InvalidOption` for the first invalid value."""
    if not pools:
        raise InvalidOption("pools", pools, "must name at least one pool")
    if not isinstance(pools, Mapping) and not all(isinstance(item, str | Mapping) for item in pools):
        raise InvalidOption("pools", pools, "must be a list of kinds, or a mapping from names")
    named = named_entries(pools)
    if len({name for name, _ in named}) < len(named):
        raise InvalidOption("pools", pools, "must name each kind once; write a mapping for two of a kind")
    for name, entry in named:
        if not _is_pool_name(name):
            rule = f"must have names of lowercase letters, digits, and _ other than {RESERVED}"
            raise InvalidOption("pools", name, rule)
        if not isinstance(entry, Mapping):
            raise InvalidOption(f"pools.{name}", entry, "must be a mapping")
        kind = pool_kinds.find(entry.get("kind", name), f"pools.{name}.kind")
        known = {**ENTRY_OPTIONS, **declared(kind)}
        for key, value in entry.items():
            if key == "kind":
                continue
            if key not in known:
                raise InvalidOption(
                    f"pools.{name}.{key}", value, f"is not an option: it {one_of(key, known)}"
                )
            if value is not None:
                known[key].check(value, f"pools.{name}.{key}")


def _is_pool_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isidentifier()
        and name == name.lower()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
        and name not in _NOT_POOLS
    )
