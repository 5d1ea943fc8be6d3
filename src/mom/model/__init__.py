"""The mathematics of Mixture-of-Modules: configuration, pools, routers, dispatch, assembly, and heads.

Read :mod:`mom.model.reference` first, then :mod:`mom.model.assembly`. The names below load on first use, so that
:mod:`mom.model.options` can be imported without PyTorch. The first use also registers the classes with transformers'
Auto classes, so that exported folders load without their own code.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "MoMCausalLMOutput": "outputs",
    "MoMConfig": "configuration",
    "MoMForCausalLM": "modeling",
    "MoMForSequenceClassification": "classification",
    "MoMModel": "modeling",
    "MoMModelOutput": "outputs",
    "MoMSequenceClassifierOutput": "outputs",
    "RoundRouting": "routing",
    "Routing": "routing",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    for public, home in _HOME.items():
        globals()[public] = getattr(import_module(f"{__name__}.{home}"), public)
    return globals()[name]


def _register() -> None:
    """Register our classes with transformers' Auto classes."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from mom.model.classification import MoMForSequenceClassification
    from mom.model.configuration import MoMConfig
    from mom.model.modeling import MoMForCausalLM, MoMModel

    AutoConfig.register(MoMConfig.model_type, MoMConfig, exist_ok=True)
    AutoModel.register(MoMConfig, MoMModel, exist_ok=True)
    AutoModelForCausalLM.register(MoMConfig, MoMForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(MoMConfig, MoMForSequenceClassification, exist_ok=True)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
