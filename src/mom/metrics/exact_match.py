"""Exact match: the fraction of examples whose answer is completely right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mom.metrics.names import EXACT_MATCH


def exact_matches(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether all answer tokens of each example have the highest logit, boolean (B,).

    Args:
        logits: (B, T, V); those at position t predict the token at t + 1.
        labels: int64 (B, T); -100 for tokens that are not part of the answer.
    """
    answers = labels[:, 1:]
    return ((logits[:, :-1].argmax(-1) == answers) | (answers == -100)).all(1)


class ExactMatch(Metric):
    """Exact match over all examples, and over those of each bucket, summed over ranks.

    Args:
        buckets: names of the parts of the validation set.
    """

    matches: Tensor
    examples: Tensor

    def __init__(self, buckets: Sequence[str]) -> None:
        super().__init__()
        self.buckets = tuple(buckets)
        for name in ("matches", "examples"):
            zeros = torch.zeros(len(self.buckets), dtype=torch.int64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, matches: Tensor, bucket: Tensor) -> None:
        """Add examples: whether each matches, boolean (B,), and the index of its bucket, int64 (B,)."""
        self.matches.index_add_(0, bucket, matches.long())
        self.examples.index_add_(0, bucket, torch.ones_like(bucket))

    def compute(self) -> dict[str, Any]:
        """Return ``val/exact_match``, and ``val/exact_match/<bucket>`` for each bucket with examples."""
        found = {EXACT_MATCH: self.matches.sum() / self.examples.sum()}
        for name, matches, examples in zip(self.buckets, self.matches, self.examples, strict=True):
            if examples:
                found[f"{EXACT_MATCH}/{name}"] = matches / examples
        return found
