"""Temporary registration of the module kind in ``examples/causal_conv.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from mom.model import registry

THREE_POOLS = ["attention", "causal_conv", "ffn"]


@contextmanager
def causal_conv() -> Iterator[None]:
    """Register the example's kind of pool."""
    registry.pools["causal_conv"] = import_module("examples.causal_conv").CausalConv
    try:
        yield
    finally:
        del registry.pools["causal_conv"]
