"""The Mixture-of-Modules classifier, as a Hugging Face model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from mom.model.choices import Choices
from mom.model.configuration import MoMConfig
from mom.model.losses import routing_losses
from mom.model.modeling import MoMModel, MoMPreTrainedModel
from mom.model.routing import RoundRouting


@dataclass
class MoMSequenceClassifierOutput(ModelOutput):
    """Output of the classifier: like :class:`mom.MoMCausalLMOutput`, with ``task_loss`` and logits [B, num_labels]."""

    loss: Tensor | None = None
    task_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    z_loss: Tensor | None = None
    depth_loss: Tensor | None = None
    capacity_loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    routing: tuple[RoundRouting, ...] | None = None


class MoMForSequenceClassification(MoMPreTrainedModel):
    """A classifier, or a regressor with one label: a linear layer on the last token that is not padding."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__(config)
        self.model = MoMModel(config)
        self.score = nn.Linear(config.d_model, int(config.num_labels or 2), bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_routing: bool = False,
        choices: Choices | None = None,
        **kwargs: Any,
    ) -> MoMSequenceClassifierOutput:
        """Score each sequence; the arguments of :meth:`MoMModel.forward` and:

        Args:
            labels: class of each sequence, int64 [B]; with one label, its value, float [B].

        Raises:
            ValueError: several sequences are given without an attention mask or ``pad_token_id`` to find their ends.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_routing=True,
            choices=choices,
        )
        hidden = output.last_hidden_state  # (B, T, D)
        last = self._last_token(hidden, input_ids, attention_mask)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        logits = self.score(hidden[rows, last])  # (B, num_labels)
        losses: dict[str, Any] = {}
        if labels is not None:
            if self.config.num_labels == 1:
                losses["task_loss"] = F.mse_loss(logits.float().squeeze(-1), labels.float())
            else:
                losses["task_loss"] = F.cross_entropy(logits.float(), labels)
            losses |= routing_losses(self.config, output.routing, attention_mask, losses["task_loss"])
        return MoMSequenceClassifierOutput(
            logits=logits,
            hidden_states=output.hidden_states,
            routing=output.routing if output_routing else None,
            **losses,
        )

    def _last_token(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """Return the index of each sequence's last real token, int64 [B]."""
        batch, length = hidden.shape[:2]
        if attention_mask is None:
            pad = self.config.pad_token_id
            if input_ids is None or pad is None:
                if batch > 1:
                    raise ValueError(
                        "batches of several sequences need an attention_mask, or input_ids and config.pad_token_id"
                    )
                return torch.full((batch,), length - 1, device=hidden.device)
            attention_mask = input_ids != pad
        positions = torch.arange(length, device=hidden.device)
        return (attention_mask.long() * positions).argmax(dim=-1)
