"""Mixture-of-Modules language models.

The names below load on first use, so that ``import mom`` stays light: PyTorch and transformers are only
imported once a model is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification

__version__ = "0.2.0.dev0"  # read by the build, recorded by runs and exports

__all__ = ["MoMConfig", "MoMForCausalLM", "MoMForSequenceClassification", "__version__"]

_HOME = {
    "MoMConfig": "mom.model",
    "MoMForCausalLM": "mom.model",
    "MoMForSequenceClassification": "mom.model",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
