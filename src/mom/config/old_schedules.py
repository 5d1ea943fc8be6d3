"""Callbacks that :class:`mom.callbacks.Schedule` replaced, and the equivalent overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mom.errors import as_written

_TARGETS = {
    "mom.callbacks.RouterNoise": "router_noise",
    "mom.callbacks.RouterPriorDecay": "router_prior_decay",
    "mom.callbacks.TopKGrowth": "top_k_growth",
}


def replacement(node: str, given: Mapping[str, Any]) -> str | None:
    """Return the error message for a node of a replaced callback, with the new overrides; ``None`` for other nodes."""
    old = _TARGETS.get(str(given.get("_target_")), node)
    if old == "router_noise":
        kind = f"{given.get('kind', 'gumbel')}_noise"
        new = _overrides(kind, start=given.get("scale", 1.0), last_step=given.get("steps"))
    elif old == "router_prior_decay":
        new = _overrides("prior_strength", end=0, last_step=given.get("steps"))
    elif old == "top_k_growth":
        new = _growth(given.get("at"))
    else:
        return None
    return f"callbacks.{old} is now a schedule; use {new}"


def _growth(at: object) -> str:
    """Return the overrides of schedules that increase K by one at each step in ``at``."""
    steps = at if isinstance(at, list | tuple) and at else ["<step>"]
    values = [f"<top_k - {left}>" for left in range(len(steps), 0, -1)] + [None]
    new = [_overrides("top_k", start=values[0], end=values[1], curve="step", last_step=steps[0])]
    for index in range(1, len(steps)):
        end = values[index + 1]
        new.append(
            f"'+callbacks.top_k_{index + 1}={{_target_: mom.callbacks.Schedule, name: top_k, start: {values[index]}, "
            f"end: {as_written(end)}, curve: step, first_step: {steps[index - 1]}, last_step: {steps[index]}}}'"
        )
    return " ".join(new)


def _overrides(node: str, **options: object) -> str:
    return " ".join(
        f"callbacks.{node}.{name}={as_written(value)}" for name, value in options.items() if value is not None
    )
