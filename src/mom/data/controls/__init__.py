"""Controls: generated tasks whose answers, and what solving them takes, are known.

A module per control defines and registers a :class:`~mom.data.controls.control.Control`. They are imported to check
requests, so none imports PyTorch or NumPy at the top. :mod:`mom.data.controls.batches` is their data module.
"""

from __future__ import annotations

from mom.data.controls import arithmetic, facts, pointer_hops, rules, table_lookup
from mom.data.controls.control import Control, Examples, register_control

__all__ = [
    "Control",
    "Examples",
    "arithmetic",
    "facts",
    "pointer_hops",
    "register_control",
    "rules",
    "table_lookup",
]
