"""The mathematics of Mixture-of-Modules: configuration, pools, routers, dispatch, assembly and heads."""

from mom.model.classification import MoMForSequenceClassification, MoMSequenceClassifierOutput
from mom.model.configuration import MoMConfig
from mom.model.modeling import (
    MoMCausalLMOutput,
    MoMForCausalLM,
    MoMModel,
    MoMModelOutput,
)
from mom.model.registration import register
from mom.model.routing import RoundRouting, Routing

register()

__all__ = [
    "MoMCausalLMOutput",
    "MoMConfig",
    "MoMForCausalLM",
    "MoMForSequenceClassification",
    "MoMModel",
    "MoMModelOutput",
    "MoMSequenceClassifierOutput",
    "RoundRouting",
    "Routing",
]
