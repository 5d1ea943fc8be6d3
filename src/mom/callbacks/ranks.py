"""What the ranks of a run tell one another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mom.errors import RequestError


def gather(thing: Any) -> list[Any]:
    """What every rank gave, in their order; every rank has to call it. One rank gets its own back."""
    if not (dist.is_available() and dist.is_initialized()):
        return [thing]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


class RankAgreement(Callback):
    """Refuses to start where ranks were asked for different things.

    Each rank reads its own command line and files. Ranks of different configurations would train, and average
    gradients of different models or data, without a word.

    Args:
        request: what has to be the same, plain data of any depth.

    Raises:
        RequestError: on every rank, naming the first option that differs and what each rank has.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = _flat(request)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, before anything is trained; hashes first, what they are of only where they differ."""
        written = json.dumps(self._request, sort_keys=True)
        if len(set(gather(hashlib.sha256(written.encode()).hexdigest()))) == 1:
            return
        requests = gather(self._request)
        names = sorted(set().union(*requests))
        option = next(name for name in names if len({one.get(name) for one in requests}) > 1)
        given = ", ".join(f"{one.get(option)} on rank {rank}" for rank, one in enumerate(requests))
        raise RequestError(option, given, "the same on every rank")


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Dotted names to values as JSON writes them."""
    if isinstance(node, Mapping):
        parts = (_flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in node.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: json.dumps(node, default=str)}
