"""Batches of tokens on which interventions are measured, with their losses and recorded choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mom.data.controls.control import IGNORED
from mom.model import MoMForCausalLM
from mom.model.choices import Choices
from mom.model.cross_entropy import CHUNK_TOKENS

Context = Callable[[], AbstractContextManager]


class Batch(NamedTuple):
    """B windows of T tokens on the model's device.

    Attributes:
        ids: int64 [B, T].
        labels: the token to predict at each position before it, int64 [B, T]; -100 is not predicted.
        choices: the right modules by pool, if they are known (:mod:`mom.model.choices`).
    """

    ids: Tensor
    labels: Tensor
    choices: Choices | None = None

    @classmethod
    def of_text(cls, ids: Tensor) -> Batch:
        """Predict every token."""
        return cls(ids, ids)

    @property
    def num_predicted(self) -> int:
        """Number of predicted tokens."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def windows(self, rows: Any) -> Batch:
        """Select windows by their indices."""
        choices = self.choices and {name: given[rows] for name, given in self.choices.items()}
        return Batch(self.ids[rows], self.labels[rows], choices)


class Recorded(NamedTuple):
    """A forward pass over a batch.

    Attributes:
        loss: cross-entropy of the label after each token, in nats, [B, T]; NaN where nothing is predicted.
        routing: the records of all rounds.
        predicted: the most likely next token, int64 [B, T]; -1 where nothing is predicted.
        probability: its probability [B, T]; NaN where nothing is predicted.
    """

    loss: Tensor
    routing: tuple[Any, ...]
    predicted: Tensor
    probability: Tensor

    def choices(self) -> dict[str, Tensor]:
        """Return the choices of every pool, int64 [B, T, R, K], which reproduce the pass."""
        return {
            name: torch.stack([getattr(record, name).selected for record in self.routing], dim=2)
            for name in type(self.routing[0])._fields
        }


@torch.inference_mode()
def run_batch(
    model: MoMForCausalLM,
    batch: Batch,
    choices: Mapping[str, Tensor] | None = None,
    context: Context = torch.no_grad,
) -> Recorded:
    """Run a model in evaluation mode over a batch, with given choices or, if its router needs any, the right ones."""
    if choices is None and any(layout.router.needs_choices for layout in model.config.pools()):
        choices = batch.choices
    with context():
        output = model.model(
            input_ids=batch.ids,
            use_cache=False,
            output_routing=True,
            choices=choices,
        )
        loss, predicted, probability = next_tokens(model, output.last_hidden_state, batch.labels)
    return Recorded(loss, output.routing, predicted, probability)


def next_tokens(model: MoMForCausalLM, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, most likely token, and its probability after each token, as :class:`Recorded` has them.

    Logits are computed in chunks of the last hidden states, [B, T, D], to save memory.
    """
    losses = torch.full(labels.shape, float("nan"), device=labels.device)
    predicted, probabilities = torch.full_like(labels, -1), losses.clone()
    before, target = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    chunks = []
    for rows, part in zip(before.split(CHUNK_TOKENS), target.split(CHUNK_TOKENS), strict=True):
        logits = model.lm_head(rows).float()  # (M, V)
        loss = F.cross_entropy(logits, part, reduction="none")
        highest, token = logits.max(dim=-1)
        chunks.append((loss, token, (highest - logits.logsumexp(dim=-1)).exp()))
    if len(before):
        ignored = target == IGNORED
        for into, values, nothing in zip(
            (losses, predicted, probabilities),
            zip(*chunks, strict=True),
            (torch.nan, -1, torch.nan),
            strict=True,
        ):
            into[:, :-1] = torch.cat(values).masked_fill(ignored, nothing).view(labels.shape[0], -1)
    return losses, predicted, probabilities
