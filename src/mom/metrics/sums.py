"""Sums of routing statistics that add up over micro-batches, batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Sums = dict[str, Tensor]


Totals = dict[str, Tensor]


def add(left: Mapping[str, Tensor] | None, right: Mapping[str, Tensor]) -> Sums:
    """The sums of two passes together; ``left`` is ``None`` before the first."""
    if left is None:
        return dict(right)
    return {name: left[name] + value for name, value in right.items()}


def collect(sums: Mapping[str, Tensor], reduce: Callable[[Tensor], Any] | None = None) -> Totals:
    """Bring sums to the host: one reduction over ranks and one transfer for all of them.

    Args:
        sums: tensors on one device, of any shapes and number types.
        reduce: sums one tensor over ranks; ``None`` on one rank.

    Returns:
        The same names and shapes, float64 on the CPU (counts are exact up to 2^53).
    """
    device = next(iter(sums.values())).device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs know no float64
    flat = torch.cat([value.detach().to(dtype).flatten() for value in sums.values()])
    if reduce is not None:
        flat = reduce(flat)
    parts = flat.cpu().double().split([value.numel() for value in sums.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(sums.items(), parts, strict=True)}


Floats = NDArray[np.float64]


def as_floats(array: ArrayLike) -> Floats:
    """An array of any number type in double precision."""
    return np.asarray(array, dtype=np.float64)


def row_shares(counts: Floats) -> Floats:
    """Each row over its sum; a row of nothing stays 0."""
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
