"""Tokenized examples of different lengths as padded batches, for fine-tuning on GLUE and XSum."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset

from mom.data.resumable import ResumableDataModule, check_batch_size
from mom.data.tokenization import split_position

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataSection

Batch = dict[str, Tensor]


class ExamplesDataModule(ResumableDataModule):
    """Batches of examples that are kept in memory.

    Training examples are shuffled in every epoch; the incomplete last batch of an epoch is dropped. The other splits
    are read in order, and each rank reads every ``world_size``-th row.

    Args:
        config: the ``data`` group.
        seed: seed of the order of the training examples.
        tokenizer: the model's tokenizer.

    Raises:
        UsageError: the data is invalid, or has fewer training rows than a batch.
    """

    def __init__(self, config: DataSection, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(config, seed)
        self.tokenizer = tokenizer
        self.splits = self.encode()
        self.num_train_batches(1)

    @abstractmethod
    def encode(self) -> dict[str, list[Any]]:
        """Read and tokenize ``train``, the validation sets, and any test sets."""

    @abstractmethod
    def collate(self, rows: Sequence[Any]) -> Batch:
        """Pad encoded examples into a batch."""

    @abstractmethod
    def content(self, example: Any) -> Iterable[float]:
        """Return the numbers that an example consists of, for :attr:`key`."""

    @cached_property
    def key(self) -> str:
        """SHA-256 of the encoded training examples in order."""
        return self._hash("train")

    @property
    def contents(self) -> dict[str, str]:
        """Hashes of the encoded examples of every split."""
        option, value = self.source
        return {f"the {split} rows of {option}={value}": self._hash(split) for split in self.splits}

    def _hash(self, split: str) -> str:
        digest = hashlib.sha256()
        for example in self.splits[split]:
            digest.update(np.asarray([*self.content(example), float("inf")]).tobytes())
        return digest.hexdigest()

    def num_train_batches(self, num_processes: int) -> int:
        """Return the number of training batches per process and epoch.

        Raises:
            UsageError: there are fewer training rows than all processes need for one batch.
        """
        rows = len(self.splits["train"])
        check_batch_size(self.config.batch_size, num_processes, rows, "training rows")
        return rows // (num_processes * self.config.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of this rank's training batches for one epoch."""
        rows = self.splits["train"]
        return self._loader(rows, sampler=self.training_sampler(len(rows)), drop_last=True)

    def rank_dataloader(self, split: str) -> DataLoader[Any]:
        """Return a loader of this rank's batches of a split, in order."""
        rank, world_size = self._ranks
        rows = self.splits[split]
        return self._loader(Subset(rows, range(rank, len(rows), world_size)))  # type: ignore[arg-type]

    def full_dataloader(self, split: str) -> DataLoader[Any]:
        """Return a loader of all batches of a split, in order, for every rank."""
        return self._loader(self.splits[split])

    def _loader(self, rows: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(rows, collate_fn=self.collate, **self._loader_options(), **options)


def held_out(texts: Sequence[str], fraction: float) -> list[bool]:
    """Return which examples of a single file are for validation, by a hash of their texts.

    Args:
        texts: the text of each example; those with the same text stay together.
        fraction: fraction of the examples to hold out, at least one.
    """
    positions = [split_position(text) for text in texts]
    ordered = sorted(positions)
    limit = ordered[min(len(ordered) - 1, max(1, round(fraction * len(ordered))))] if ordered else 0
    return [position < limit for position in positions]


def pad(rows: Sequence[list[int]], filler: int, left: bool = False) -> Batch:
    """Pad rows of different lengths with ``filler`` on the right, or on the left.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 (B, T).
    """
    side = "left" if left else "right"
    ids = [torch.tensor(row) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=filler, padding_side=side),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side=side),
    }
