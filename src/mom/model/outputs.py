"""What the models return, as transformers' ``ModelOutput``: predictions first, so that tuples have its order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from mom.model.routing import RoundRouting


@dataclass
class MoMModelOutput(ModelOutput):
    """Output of the model without a head.

    Attributes:
        last_hidden_state: output of the final norm, [B, T, D].
        past_key_values: the cache, one layer per executed attention.
        hidden_states: the residual stream after the embeddings and after every block and round, [B, T, D] each; the
            last is that after the final norm.
        attentions: the weights of each attention that ran, in order, [B, heads, T, T_key] each.
        routing: one :class:`RoundRouting` per round, stages in order; empty for a plain transformer.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    routing: tuple[RoundRouting, ...] | None = None


@dataclass
class MoMCausalLMOutput(ModelOutput):
    """Output of the language model.

    Attributes:
        loss: ``lm_loss`` plus every other loss below times its coefficient, such as ``balance_coefficient``. A term
            with coefficient 0 is left out of the sum, and reported without a gradient. With ``num_items_in_batch``,
            the other losses are also multiplied by this batch's share of these items.
        logits: [B, T, V].
        lm_loss: mean cross-entropy of the next token, in nats; with ``num_items_in_batch``, the sum divided by it.
        balance_loss: summed over pools, before its coefficient.
        z_loss: router z-loss, before its coefficient.
        depth_loss: penalty on the distance to ``depth_target``, before its coefficient; ``None`` without one.
        capacity_loss: cross-entropy of predicting which tokens modules take, before its coefficient; ``None`` without a
            ``capacity``.
        others: see :class:`MoMModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    lm_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    z_loss: Tensor | None = None
    depth_loss: Tensor | None = None
    capacity_loss: Tensor | None = None
    routing: tuple[RoundRouting, ...] | None = None


@dataclass
class MoMSequenceClassifierOutput(ModelOutput):
    """Output of the classifier: like :class:`mom.MoMCausalLMOutput`, with ``task_loss`` and logits [B, num_labels]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    task_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    z_loss: Tensor | None = None
    depth_loss: Tensor | None = None
    capacity_loss: Tensor | None = None
    routing: tuple[RoundRouting, ...] | None = None
