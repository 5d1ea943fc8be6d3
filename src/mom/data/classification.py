"""Labelled sentences and pairs as batches for a classifier."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mom.data.glue import TASKS, GlueExample, load_glue
from mom.data.tokenizer import text_encoder
from mom.data.windows import ResumableSampler
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import GlueConfig

log = logging.getLogger(__name__)

Encoded = tuple[list[int], int | float | None]
Batch = dict[str, Tensor]


class GlueDataModule(pl.LightningDataModule):
    """One task of GLUE, tokenised.

    An example is its sentence, or its two sentences parted by the end-of-text token, and the end-of-text
    token, at which the classifier reads. Batches are ``{"input_ids", "attention_mask", "labels"}``, int64
    [B, T] padded on the right, labels int64 or float [B]; test batches have no labels. Training batches come
    in a seeded order, new in each epoch; rows that do not fill its last batch wait for the next order.

    Args:
        config: the ``data`` group.
        seed: of the order of the training examples.
        tokenizer: of the model.

    Raises:
        RequestError: see :func:`mom.data.glue.load_glue`.
    """

    def __init__(self, config: GlueConfig, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.tokenizer = tokenizer
        self.task = TASKS[config.name]
        examples = load_glue(config)
        self.splits = {name: self._encode(name, rows) for name, rows in examples.items()}
        self.validations = [name for name in self.splits if name.startswith("validation")]
        self.tests = [name for name in self.splits if name.startswith("test")]
        if len(self.splits["train"]) < config.batch_size:
            raise RequestError(
                "data.batch_size",
                config.batch_size,
                f"at most {len(self.splits['train'])}, the training rows",
            )

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

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's training batches of one epoch."""
        rank, world_size = self._ranks
        rows = self.splits["train"]
        sampler = ResumableSampler(len(rows), self.config.batch_size, self.seed, rank, world_size)
        return self._loader(rows, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The validation sets, in order."""
        return [self._in_order(name) for name in self.validations]

    def test_batches(self, split: str) -> DataLoader[Any]:
        """A test set in order, whole on every rank."""
        return self._loader(self.splits[split], shuffle=False)

    def _in_order(self, split: str) -> DataLoader[Any]:
        rank, world_size = self._ranks
        rows = self.splits[split]
        mine = range(rank, len(rows), world_size)
        return self._loader(Subset(rows, mine), shuffle=False)  # type: ignore[arg-type]

    def _loader(self, rows: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            rows,
            batch_size=self.config.batch_size,
            collate_fn=self._collate,
            num_workers=self.config.num_workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _collate(self, rows: Sequence[Encoded]) -> Batch:
        batch = pad([ids for ids, _ in rows], self.tokenizer.eos_token_id)
        labels = [label for _, label in rows]
        return batch if labels[0] is None else {**batch, "labels": torch.tensor(labels)}

    @property
    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def truncate(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cut the ends of the longest parts until all of them together have at most ``room`` tokens."""
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        lengths[lengths.index(max(lengths))] -= 1
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def pad(rows: Sequence[list[int]], filler: int, left: bool = False) -> Batch:
    """``input_ids`` and ``attention_mask``, int64 [B, T], of rows of different lengths; padded on the right."""
    length = max(map(len, rows))
    before = [length - len(row) if left else 0 for row in rows]
    after = [length - len(row) - start for row, start in zip(rows, before, strict=True)]
    ids = [[filler] * b + row + [filler] * a for b, row, a in zip(before, rows, after, strict=True)]
    mask = [[0] * b + [1] * len(row) + [0] * a for b, row, a in zip(before, rows, after, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
