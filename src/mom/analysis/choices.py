"""What is known about the routers' choices, as numbers by metric name and as tables of plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mom.metrics.choice_value import ChoiceValue
from mom.metrics.dependence import Dependence
from mom.metrics.difficulty import DepthOfGroup
from mom.metrics.regret import BestPath, Regret, Swap, mean_regret

ALL_POOLS = "all"
"""The name of all pools together in metrics and tables."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Choices:
    """The measurements of an analysis.

    Attributes:
        skips: index of SKIP in each pool, in the order of a round.
        changes: for each pool, the fraction of tokens that change their first choice in each round but the first of a
            stage.
        dependence: what choices depend on.
        depths: depth against difficulty.
        values: the loss when choices are replaced; empty if not measured.
        swaps: other choices of sampled tokens, one at a time; empty if not measured.
        paths: the best paths found for these tokens; empty if not searched.
    """

    skips: Mapping[str, int]
    changes: Mapping[str, Mapping[int, float]]
    dependence: Sequence[Dependence]
    depths: Sequence[DepthOfGroup]
    values: Sequence[ChoiceValue] = ()
    swaps: Sequence[Swap] = ()
    paths: Sequence[BestPath] = ()
    regrets: Mapping[tuple[str, int | None], Regret] = field(init=False)
    """Means over swaps by pool and round; over all rounds for ``None``."""

    def __post_init__(self) -> None:
        found: dict[tuple[str, int | None], list[Swap]] = {}
        for swap in self.swaps:
            found.setdefault((swap.kind, None), []).append(swap)
        for swap in sorted(self.swaps, key=lambda swap: swap.round):
            found.setdefault((swap.kind, swap.round), []).append(swap)
        regrets = {key: mean_regret(own, self.skips[key[0]]) for key, own in found.items()}
        object.__setattr__(self, "regrets", regrets)

    def facts(self) -> dict[str, float]:
        """Return the numbers over all rounds by metric name, without those that are undefined."""
        facts: dict[str, float] = {}
        for pool, changes in self.changes.items():
            if changes:
                facts[f"routing/{pool}/round_changes"] = sum(changes.values()) / len(changes)
        for item in self.dependence:
            if item.round is None:
                for name in ("information", "share", "fixed"):
                    facts[f"dependence/{item.kind}/{item.attribute}/{name}"] = getattr(item, name)
        for value in self.values:
            if value.round is None:
                facts[f"choice_value/{value.kind or ALL_POOLS}/{value.replacement}"] = value.increase
        for (pool, number), regret in self.regrets.items():
            if number is None:
                for name in ("better", "regret", "change"):
                    facts[f"regret/{pool}/{name}"] = getattr(regret, name)
        for row in path_table(self):
            facts |= {f"paths/{row['kind']}/{name}": row[name] for name in ("better", "gain")}
        return {name: value for name, value in facts.items() if not math.isnan(value)}

    def tables(self) -> dict[str, Rows]:
        """Return the tables by name; an undefined number is ``None``."""
        tables = {
            "choice_value": [{**asdict(value), "kind": value.kind or ALL_POOLS} for value in self.values],
            "regret": [
                {"kind": pool, "round": number, **asdict(regret)}
                for (pool, number), regret in self.regrets.items()
            ],
            "paths": path_table(self),
            "dependence": [asdict(item) for item in self.dependence],
            "difficulty": [asdict(row) for row in self.depths],
            "changes": [
                {"kind": pool, "round": number, "changed": change}
                for pool, changes in self.changes.items()
                for number, change in changes.items()
            ],
        }
        return {name: [_defined(row) for row in rows] for name, rows in tables.items()}


def path_table(choices: Choices) -> Rows:
    """Average the searches for best paths, of each pool and of all pools.

    Columns: ``kind``; ``tokens``; ``complete``, fraction of complete searches; ``better``, fraction of tokens with a
    better path; ``gain``, mean nats that it saves; ``own_modules`` and ``best_modules``, mean modules on the token's
    own and on the best path; ``swaps``, mean number of different choices.
    """
    rows = []
    for kind in dict.fromkeys(path.kind for path in choices.paths):
        own = [path for path in choices.paths if path.kind == kind]
        means = {
            name: sum(float(getattr(path, name)) for path in own) / len(own)
            for name in ("gain", "own_modules", "best_modules", "swaps")
        }
        rows.append(
            {
                "kind": kind or ALL_POOLS,
                "tokens": len(own),
                "complete": sum(path.complete for path in own) / len(own),
                "better": sum(path.gain > 0 for path in own) / len(own),
                **means,
            }
        )
    return rows


def _defined(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()
    }
