"""The largest pool, K or H whose cost stays within that of another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mom.cost.estimate import flops_per_token, forward_memory, num_parameters
from mom.model import MoMConfig

FIELDS: Mapping[str, tuple[str, ...]] = {
    "modules": ("num_attention_modules", "num_ffn_modules"),
    "top_k": ("top_k",),
    "rounds": ("num_rounds",),
}
"""What can be solved for, and the fields of :class:`MoMConfig` that move together with it."""

DEFAULT_FIELD: Mapping[str, str] = {"params": "modules", "flops": "rounds", "memory": "modules"}
"""What is solved for where nothing is said: the one that each cost depends on most."""


MOST = 4096
"""Where the search ends."""


def costs(length: int, batch_size: int, number_bytes: int) -> Mapping[str, Callable[[MoMConfig], float]]:
    """What can be budgeted, as functions of a configuration.

    Args:
        length: T, tokens in a sequence.
        batch_size: B, sequences.
        number_bytes: bytes of a parameter and of an activation.

    Returns:
        ``params``: parameters; ``flops``: of a forward over one sequence, no SKIP; ``memory``: bytes of a forward.
    """
    return {
        "params": num_parameters,
        "flops": lambda config: flops_per_token(config, length).total * length,
        "memory": lambda config: forward_memory(config, batch_size, length, number_bytes).total,
    }


def with_value(config: MoMConfig, field: str, value: int) -> MoMConfig | None:
    """The configuration with another pool size, K or H; ``None`` if there is no such model."""
    try:
        return MoMConfig.from_dict({**config.to_dict(), **dict.fromkeys(FIELDS[field], value)})
    except ValueError:
        return None


def solve(
    config: MoMConfig, field: str, limit: float, cost: Callable[[MoMConfig], float], most: int = MOST
) -> int | None:
    """The largest value of a field at which the model costs no more than ``limit``, by bisection.

    The costs grow with each field. Values that no model has (a K larger than the choices of a round) count as
    too large, and so do those below the smallest that one has as small enough.

    Args:
        config: the model whose field is varied.
        field: a key of :data:`FIELDS`.
        limit: in the units of ``cost``.
        cost: what a configuration costs.
        most: where the search ends.

    Returns:
        The value; ``None`` if no model with this field is within the limit.
    """
    least = next(
        (value for value in range(1, most + 1) if with_value(config, field, value) is not None), None
    )
    if least is None:
        return None

    def fits(value: int) -> bool:
        made = with_value(config, field, value)
        return made is not None and cost(made) <= limit

    if not fits(least):
        return None
    low, high = least, most + 1  # low fits, high does not or is past the end
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
