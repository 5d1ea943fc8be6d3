"""Labelled sentences and pairs as batches for a classifier."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from mom.data.examples import Batch, ExamplesDataModule, pad
from mom.data.glue import TASKS, GlueExample, load_glue
from mom.data.tokenizer import text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import GlueConfig

log = logging.getLogger(__name__)

Encoded = tuple[list[int], int | float | None]


class GlueDataModule(ExamplesDataModule):
    """One task of GLUE, tokenised.

    An example is its sentence, or its two sentences parted by the end-of-text token, and the end-of-text
    token, at which the classifier reads. Batches are ``{"input_ids", "attention_mask", "labels"}``, int64
    [B, T] padded on the right, labels int64 or float [B]; test batches have no labels.

    Args:
        config: the ``data`` group.
        seed: of the order of the training examples.
        tokenizer: of the model.

    Raises:
        RequestError: see :func:`mom.data.glue.load_glue`.
    """

    def __init__(self, config: GlueConfig, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        self.task = TASKS[config.name]
        super().__init__(config, seed, tokenizer)
        self.validations = [name for name in self.splits if name.startswith("validation")]
        self.tests = [name for name in self.splits if name.startswith("test")]

    def encode(self) -> dict[str, list[Encoded]]:
        """Read the task's files and tokenise every split."""
        return {name: self._encode(name, rows) for name, rows in load_glue(self.config).items()}

    def _encode(self, split: str, examples: Sequence[GlueExample]) -> list[Encoded]:
        encoder = text_encoder(self.tokenizer)
        parts = [
            [one.ids for one in encoder.encode_batch([example.texts[i] for example in examples])]
            for i in range(len(examples[0].texts))
        ]
        end = self.tokenizer.eos_token_id
        room = self.config.sequence_length - len(parts)
        encoded, truncated = [], 0
        for example, *ids in zip(examples, *parts, strict=True):
            kept = truncate(ids, room)
            truncated += kept != ids
            encoded.append(([token for part in kept for token in (*part, end)], example.label))
        log.info(
            "%s %s: %d rows, %d of them truncated to %d tokens",
            *(self.task.name, split, len(examples), truncated, self.config.sequence_length),
        )
        return encoded

    @property
    def label_counts(self) -> list[int]:
        """How many training rows each class has; empty where labels are numbers."""
        counts = Counter(label for _, label in self.splits["train"])
        return [counts[number] for number in range(len(self.task.labels))]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """This rank's batches of the validation sets, in order."""
        return [self.in_order(name) for name in self.validations]

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """A batch of examples; see the class."""
        batch = pad([ids for ids, _ in rows], self.tokenizer.eos_token_id)
        labels = [label for _, label in rows]
        return batch if labels[0] is None else {**batch, "labels": torch.tensor(labels)}

    def content(self, example: Encoded) -> Iterable[float]:
        """Its tokens and its label."""
        ids, label = example
        return ids if label is None else (*ids, label)


def truncate(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cut the ends of the longest parts until all of them together have at most ``room`` tokens."""
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        lengths[lengths.index(max(lengths))] -= 1
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
