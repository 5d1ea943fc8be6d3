"""Exchange objects between the ranks of a run, and check that they agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.errors import UsageError


def gather(obj: Any) -> list[Any]:
    """Return the objects of all ranks in order; every rank has to call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [obj]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


class RankAgreement(Callback):
    """Checks before training that all ranks have the same configuration.

    Each rank reads its own command line and files. With different configurations they would silently average gradients
    of different models or data.

    Args:
        request: the configuration, as nested plain data.

    Raises:
        UsageError: on every rank, naming the first option that differs and its value on each rank.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = _flat(request)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare hashes before training; exchange the requests only if they differ."""
        written = json.dumps(self._request, sort_keys=True)
        if len(set(gather(hashlib.sha256(written.encode()).hexdigest()))) == 1:
            return
        requests = gather(self._request)
        names = sorted(set().union(*requests))
        option = next(name for name in names if len({other.get(name) for other in requests}) > 1)
        values = ", ".join(f"{other.get(option)} on rank {rank}" for rank, other in enumerate(requests))
        raise UsageError(f"{option} must be the same on every rank, got {values}")


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Return each value as JSON, by its dotted name."""
    if isinstance(node, Mapping):
        parts = (_flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in node.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: json.dumps(node, default=str)}
