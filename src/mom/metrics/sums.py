"""Sums of statistics that add up over micro-batches, batches, and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

Sums = dict[str, Tensor]
"""Sums by name, on the model's device."""

Totals = dict[str, Tensor]
"""Sums of a window over all ranks, on the host."""

Floats = NDArray[np.float64]


def add(left: Mapping[str, Tensor] | None, right: Mapping[str, Tensor]) -> Sums:
    """Add the sums of two passes; ``left`` is ``None`` before the first pass."""
    if left is None:
        return dict(right)
    return {name: left[name] + value for name, value in right.items()}


def collect(sums: Mapping[str, Tensor], reduce: Callable[[Tensor], Any] | None = None) -> Totals:
    """Move sums to the host, with a single reduction over ranks and a single transfer.

    Args:
        sums: tensors on one device, of any shape and dtype.
        reduce: sums a tensor over ranks; ``None`` with a single rank.

    Returns:
        The same names and shapes, float64 on the CPU (counts are exact up to 2^53).
    """
    device = next(iter(sums.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple GPUs lack float64
    flat = torch.cat([value.detach().to(dtype).flatten() for value in sums.values()])
    if reduce is not None:
        flat = reduce(flat)
    parts = flat.cpu().double().split([value.numel() for value in sums.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(sums.items(), parts, strict=True)}


def prefixed(group: str, sums: Mapping[str, Tensor]) -> Sums:
    """Return sums under the names ``<group>/<name>``."""
    return {f"{group}/{name}": value for name, value in sums.items()}


def with_prefix(group: str, sums: Mapping[str, Tensor]) -> Sums:
    """Return the sums of a group without its prefix: the inverse of :func:`prefixed`."""
    prefix = f"{group}/"
    return {name.removeprefix(prefix): value for name, value in sums.items() if name.startswith(prefix)}


def as_floats(array: ArrayLike) -> Floats:
    """Convert an array to float64."""
    return np.asarray(array, dtype=np.float64)


def row_shares(counts: Floats) -> Floats:
    """Divide each row by its sum; a row of zeros stays 0."""
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), np.finfo(float).tiny)


class Average(NamedTuple):
    """A mean, and the total weight of the values it is taken over."""

    mean: Tensor
    weight: Tensor


class WeightedMean(Metric):
    """Mean of values weighted by counts, over micro-batches and ranks: NaN without values, or if one is NaN.

    torchmetrics' ``MeanMetric`` either drops NaNs, which should be visible, or ignores the weights (torchmetrics 1.9).
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, weight: Tensor | int) -> None:
        """Add the mean of ``weight`` values; with a weight of 0, nothing is added, even if the mean is NaN."""
        weight = torch.as_tensor(weight, device=self.total.device)
        self.total += torch.where(weight > 0, mean.detach() * weight, 0.0)
        self.weight += weight

    def compute(self) -> Average:
        """Return the mean and the total weight."""
        return Average(self.total / self.weight, self.weight)
