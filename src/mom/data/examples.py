"""Tokenized examples of different lengths as padded batches: what fine-tuning on GLUE and on XSum shares."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mom.data.resumable import ResumableDataModule
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataSection

Batch = dict[str, Tensor]


class ExamplesDataModule(ResumableDataModule):
    """Splits of examples that are in memory, as batches.

    Training batches come in a seeded order, new in each epoch; rows that do not fill its last batch wait for the
    next order. The other splits come in order, each rank taking every ``world_size``-th row.

    Args:
        config: the ``data`` group.
        seed: of the order of the training examples.
        tokenizer: of the model.

    Raises:
        RequestError: data that cannot be used, or fewer training rows than a batch has.
    """

    def __init__(self, config: DataSection, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(config, seed)
        self.tokenizer = tokenizer
        self.splits = self.encode()
        self.num_train_batches(1)

    @abstractmethod
    def encode(self) -> dict[str, list[Any]]:
        """Read and tokenize ``train``, the validation sets and what test sets there are."""

    @abstractmethod
    def collate(self, rows: Sequence[Any]) -> Batch:
        """A batch of encoded examples."""

    @abstractmethod
    def content(self, example: Any) -> Iterable[float]:
        """The numbers that an example consists of."""

    @property
    def key(self) -> str:
        """SHA-256 of the training examples in order, as encoded."""
        return self._key

    @cached_property
    def _key(self) -> str:
        digest = hashlib.sha256()
        for example in self.splits["train"]:
            digest.update(np.asarray([*self.content(example), float("inf")]).tobytes())
        return digest.hexdigest()

    def num_train_batches(self, num_processes: int) -> int:
        """Training batches that each of so many processes has in an epoch.

        Raises:
            RequestError: fewer training rows than a batch of all of them has.
        """
        rows = len(self.splits["train"])
        if rows < num_processes * self.config.batch_size:
            raise RequestError(
                "data.batch_size",
                f"{self.config.batch_size} on {num_processes} process(es)",
                f"at most {rows} in all, the training rows",
            )
        return rows // (num_processes * self.config.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's training batches of one epoch."""
        rows = self.splits["train"]
        return self._loader(rows, sampler=self.training_sampler(len(rows)), drop_last=True)

    def in_order(self, split: str) -> DataLoader[Any]:
        """This rank's batches of a split, in order."""
        rank, world_size = self._ranks
        rows = self.splits[split]
        return self._loader(Subset(rows, range(rank, len(rows), world_size)))  # type: ignore[arg-type]

    def whole(self, split: str) -> DataLoader[Any]:
        """All batches of a split in order, on every rank."""
        return self._loader(self.splits[split])

    def _loader(self, rows: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(rows, collate_fn=self.collate, **self._loader_options(), **options)


def pad(rows: Sequence[list[int]], filler: int, left: bool = False) -> Batch:
    """``input_ids`` and ``attention_mask``, int64 [B, T], of rows of different lengths; padded on the right."""
    length = max(map(len, rows))
    before = [length - len(row) if left else 0 for row in rows]
    after = [length - len(row) - start for row, start in zip(rows, before, strict=True)]
    ids = [[filler] * b + row + [filler] * a for b, row, a in zip(before, rows, after, strict=True)]
    mask = [[0] * b + [1] * len(row) + [0] * a for b, row, a in zip(before, rows, after, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
