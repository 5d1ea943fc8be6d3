"""Exchange objects between the ranks of a run, and check that they agree."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.errors import RankDied, UsageError
from mom.runs.owner import Process


def gather(obj: Any) -> list[Any]:
    """Return the objects of all ranks in order; every rank has to call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [obj]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


class RankAgreement(Callback):
    """Checks before training that all ranks have the same configuration, and knows their processes.

    Each rank reads its own command line and files. With different configurations they would silently average gradients
    of different models or data.

    Args:
        request: the configuration, as nested plain data.

    Raises:
        UsageError: on every rank, naming the first option that differs and its value on each rank.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = _flat(request)
        self._processes: list[Process] = []
        self._rank = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare hashes before training; exchange the requests only if they differ."""
        self._processes, self._rank = gather(Process.current()), trainer.global_rank
        written = json.dumps(self._request, sort_keys=True)
        if len(set(gather(hashlib.sha256(written.encode()).hexdigest()))) == 1:
            return
        requests = gather(self._request)
        names = sorted(set().union(*requests))
        option = next(name for name in names if len({other.get(name) for other in requests}) > 1)
        values = ", ".join(f"{other.get(option)} on rank {rank}" for rank, other in enumerate(requests))
        raise UsageError(f"{option} must be the same on every rank, got {values}")

    def check_alive(self) -> None:
        """Check that the processes of the other ranks on this host are alive, after a failed exchange with them.

        Raises:
            RankDied: some are not.
        """
        others = {rank: process for rank, process in enumerate(self._processes) if rank != self._rank}
        last = time.monotonic() + _DEATH_SECONDS
        while others:
            dead = {rank: process for rank, process in others.items() if process.has_died}
            if dead:
                alive = [rank for rank in range(len(self._processes)) if rank not in dead]
                raise RankDied(dead, records=0 in dead and self._rank == alive[0])
            if time.monotonic() > last:
                return
            time.sleep(0.1)


_DEATH_SECONDS = 2.0
"""Time to wait for a killed process to end, because its connections close slightly earlier."""


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Return each value as JSON, by its dotted name."""
    if isinstance(node, Mapping):
        parts = (_flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in node.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: json.dumps(node, default=str)}
