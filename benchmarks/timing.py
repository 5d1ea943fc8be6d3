"""Time contenders in turn, so that a slowdown of the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mom.cost.machine import synchronize

Seconds = dict[str, list[float]]

LIMIT_SECONDS = 100.0
"""Repetitions that would end later are left out, but the first."""


def timed(
    contenders: Mapping[str, Callable[[], object]], repeats: int, *, device: str = "cpu", warm_up: int = 1
) -> Seconds:
    """Return each contender's seconds for each repetition; ``warm_up`` repetitions before are not measured.

    There are fewer repetitions than ``repeats`` if they take longer than :data:`LIMIT_SECONDS`, as bfloat16 does on a
    processor without instructions for it.
    """
    seconds: Seconds = {name: [] for name in contenders}
    for repeat in range(-warm_up, repeats):
        if repeat > 0 and sum(map(sum, seconds.values())) * (repeat + 1) / repeat > LIMIT_SECONDS:
            break
        for name, work in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Seconds, above: str, below: str, factor: float = 1.0) -> list[float]:
    """Return one contender's seconds divided by another's, repetition by repetition, times a factor."""
    return [factor * a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
