"""The Mixture-of-Modules classifier, as a Hugging Face model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from mom.model.attention import real_tokens
from mom.model.choices import Choices
from mom.model.configuration import MoMConfig
from mom.model.cross_entropy import as_count
from mom.model.losses import routing_losses, window_share
from mom.model.modeling import MoMModel, MoMPreTrainedModel
from mom.model.outputs import MoMSequenceClassifierOutput


class MoMForSequenceClassification(MoMPreTrainedModel):
    """A classifier, or a regressor with one label: a linear layer on the last token that is not padding."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 2)
        self.model = MoMModel(config)
        self.score = nn.Linear(config.d_model, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_routing: bool = False,
        choices: Choices | None = None,
    ) -> MoMSequenceClassifierOutput:
        """Score each sequence; the arguments of :meth:`MoMModel.forward` and:

        Args:
            labels: by ``config.problem_type``, the class of each sequence, int64 [B]; its values, float [B, num_labels]
                (or [B] if there is one); or 1 for each of its labels, float [B, num_labels]. ``None``: a regression
                with one label, and else classes if the labels are integers, or several labels.
            num_items_in_batch: labels in all batches whose gradients are summed, as for
                :meth:`mom.MoMForCausalLM.forward`.

        Raises:
            ValueError: several sequences are given without an attention mask or ``pad_token_id`` to find their ends.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            output_routing=True,
            choices=choices,
            return_dict=True,
        )
        hidden = output.last_hidden_state  # (B, T, D)
        real = real_tokens(attention_mask, hidden)
        last = self._last_token(hidden, input_ids, real)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        logits = self.score(hidden[rows, last])  # (B, num_labels)
        losses: dict[str, Any] = {}
        if labels is not None:
            losses["task_loss"], num_targets = self._task_loss(logits, labels, num_items_in_batch)
            share = window_share(num_targets, num_items_in_batch)
            losses |= routing_losses(self.config, output.routing, real, losses["task_loss"], share)
        return MoMSequenceClassifierOutput(
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            routing=output.routing if output_routing else None,
            **losses,
        )

    def _task_loss(
        self, logits: Tensor, labels: Tensor, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of the problem's type, and the number of labels that it is a mean over; both scalars."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = labels.to(logits.device)
        reduction = "mean" if num_items is None else "sum"
        problem = self.config.problem_type
        if problem is None and self.num_labels == 1:
            problem = "regression"
        if problem == "single_label_classification" or (problem is None and not labels.is_floating_point()):
            labels = labels.flatten()
            loss = F.cross_entropy(logits, labels, reduction=reduction)
            count = (labels != -100).sum()
        else:
            labels = labels.to(logits.dtype).view_as(logits)
            elementwise = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
            loss = elementwise(logits, labels, reduction=reduction)
            count = torch.tensor(labels.numel(), device=logits.device)
        return loss if num_items is None else loss / as_count(num_items, loss.device), count

    def _last_token(self, hidden: Tensor, input_ids: Tensor | None, real: Tensor | None) -> Tensor:
        """Return the index of each sequence's last real token, int64 [B]."""
        batch, length = hidden.shape[:2]
        if real is None:
            pad = self.config.pad_token_id
            if input_ids is None or pad is None:
                if batch > 1:
                    raise ValueError(
                        "batches of several sequences need an attention_mask, or input_ids and config.pad_token_id"
                    )
                return torch.full((batch,), length - 1, device=hidden.device)
            real = input_ids != pad
        positions = torch.arange(length, device=hidden.device)
        return (real.long() * positions).argmax(dim=-1)
