"""Mixture-of-Modules language models.

The names below load on first use, so that ``import mom`` stays light: PyTorch and transformers are only
imported once a model is asked for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification

    __version__: str

__all__ = ["MoMConfig", "MoMForCausalLM", "MoMForSequenceClassification", "__version__"]

_HOME = {
    "MoMConfig": "mom.model",
    "MoMForCausalLM": "mom.model",
    "MoMForSequenceClassification": "mom.model",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        try:
            value: Any = version("mom")
        except PackageNotFoundError:  # read from a source tree that was never installed
            value = "0+unknown"
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
