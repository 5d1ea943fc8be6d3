"""Find the largest pool size, K, or number of rounds whose cost stays within that of another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mom.cost.estimate import flops_per_token, forward_memory, num_parameters
from mom.model import MoMConfig

FIELDS = ("modules", "top_k", "rounds")
"""Fields that can be solved for: the number of modules of all pools, K, or the number of rounds H."""

DEFAULT_FIELD: Mapping[str, str] = {"params": "modules", "flops": "rounds", "memory": "modules"}
"""The field to solve for by default: the field that the cost depends on most."""

LIMIT = 4096
"""Largest value to try."""


def costs(
    length: int, batch_size: int, number_bytes: int, weight_bytes: int | None = None
) -> Mapping[str, Callable[[MoMConfig], float]]:
    """Return the costs that a budget may limit, as functions of a configuration.

    Args:
        length: T, tokens in a sequence.
        batch_size: B, number of sequences.
        number_bytes: bytes of an activation.
        weight_bytes: bytes of a parameter; ``None``: the same.

    Returns:
        ``params``: parameters; ``flops``: FLOPs of a forward pass over one sequence, without SKIP; ``memory``: bytes
        of a forward pass.
    """
    return {
        "params": num_parameters,
        "flops": lambda config: flops_per_token(config, length).total * length,
        "memory": lambda config: forward_memory(config, batch_size, length, number_bytes, weight_bytes).total,
    }


def options_of(config: MoMConfig, field: str) -> tuple[str, ...]:
    """Return the model options of a field, such as ``num_rounds`` or ``pools.ffn.num_modules``."""
    if field == "modules":
        flat = {layout.name: f"num_{layout.kind.name}_modules" for layout in config.pools()}
        if not isinstance(config.pool_specs, Mapping) and all(
            hasattr(config, option) for option in flat.values()
        ):
            return tuple(flat.values())
        return tuple(f"pools.{name}.num_modules" for name in flat)
    return ("top_k",) if field == "top_k" else ("num_rounds",)


def with_value(config: MoMConfig, field: str, value: int) -> MoMConfig | None:
    """Return the configuration with another pool size, K, or H; ``None`` if it is invalid."""
    changed: dict[str, Any] = config.to_dict()
    names = options_of(config, field)
    if names[0].startswith("pools."):
        specs = config.pool_specs if isinstance(config.pool_specs, Mapping) else {}
        changed["pools"] = {
            layout.name: {"kind": layout.kind.name, **(specs.get(layout.name) or {}), "num_modules": value}
            for layout in config.pools()
        }
    else:
        changed |= dict.fromkeys(names, value)
    try:
        return MoMConfig.from_dict(changed)
    except ValueError:
        return None


def solve(
    config: MoMConfig, field: str, limit: float, cost: Callable[[MoMConfig], float], most: int = LIMIT
) -> int | None:
    """Find the largest value of a field at which the model costs no more than ``limit``, by bisection.

    Costs grow with each field. An invalid value counts as too small if it is below the smallest valid value, otherwise
    as too large (a K above the number of choices).

    Args:
        config: the model whose field is varied.
        field: one of :data:`FIELDS`.
        limit: the budget, in the units of ``cost``.
        cost: returns the cost of a configuration.
        most: largest value to try.

    Returns:
        The value; ``None`` if no valid value is within the limit.
    """
    least = next(
        (value for value in range(1, most + 1) if with_value(config, field, value) is not None), None
    )
    if least is None:
        return None

    def fits(value: int) -> bool:
        changed = with_value(config, field, value)
        return changed is not None and cost(changed) <= limit

    if not fits(least):
        return None
    low, high = least, most + 1  # low fits; high does not fit or is out of range
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
