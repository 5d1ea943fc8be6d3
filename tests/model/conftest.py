"""A module kind of the examples, registered for the tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest

from mom.model import registry


@pytest.fixture
def causal_conv() -> Iterator[None]:
    """Register the kind; importing its module does so only once in a process."""
    registry.pools["causal_conv"] = import_module("examples.causal_conv").CausalConv
    yield
    del registry.pools["causal_conv"]
