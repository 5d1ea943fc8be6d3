"""Our classes under transformers' Auto names, so that a folder of ours loads without running its own code."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from mom.model.classification import MoMForSequenceClassification
from mom.model.configuration import MoMConfig
from mom.model.modeling import MoMForCausalLM, MoMModel


def register() -> None:
    """Tell transformers' Auto classes about ours; called once, when :mod:`mom.model` is imported."""
    AutoConfig.register(MoMConfig.model_type, MoMConfig, exist_ok=True)
    AutoModel.register(MoMConfig, MoMModel, exist_ok=True)
    AutoModelForCausalLM.register(MoMConfig, MoMForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(MoMConfig, MoMForSequenceClassification, exist_ok=True)
