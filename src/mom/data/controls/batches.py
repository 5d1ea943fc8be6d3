"""The data module of controls."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from mom.data.controls.control import Control, Examples
from mom.data.resumable import ResumableDataModule, check_batch_size


class ControlDataModule(ResumableDataModule):
    """Batches of a control's examples, which are kept in memory.

    Batches are ``{"input_ids", "labels"}``, int64 (B, T), ``bucket``, int64 (B,), and ``choices``, the right modules
    by pool, int64 (B, T), if the control knows them. Training examples come in an order that resumes exactly;
    validation examples in order.

    Args:
        config: the control.
        seed: seed of the order of the training examples.
    """

    tokenizer = None

    def __init__(self, config: Control, seed: int) -> None:
        super().__init__(config, seed)
        self.control = config

    def setup(self, stage: str | None = None) -> None:
        """Generate the examples.

        Raises:
            UsageError: the control cannot be generated, or has fewer training examples than a batch.
        """
        assert len(self.validation.input_ids)
        number = len(self.training.input_ids)
        check_batch_size(self.config.batch_size, self._ranks[1], number, "training examples")

    @cached_property
    def training(self) -> Examples:
        """The training examples."""
        return self.control.training()

    @cached_property
    def validation(self) -> Examples:
        """The validation examples."""
        return self.control.validation()

    @property
    def vocab_size(self) -> int:
        """Number of rows in the token embedding."""
        return self.control.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all examples."""
        digest = hashlib.sha256()
        for examples in (self.training, self.validation):
            for part in (examples.input_ids, examples.labels):
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    @property
    def key(self) -> str:
        """Hash of the examples."""
        return self.fingerprint

    @property
    def source(self) -> tuple[str, str]:
        """The option and the value that select the control."""
        return "data.name", self.control.name

    @property
    def num_train_tokens(self) -> int:
        """Number of training tokens."""
        return self.training.input_ids.numel()

    @property
    def num_validation_tokens(self) -> int:
        """Number of validation tokens."""
        return self.validation.input_ids.numel()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of this rank's training batches for one epoch."""
        rows = _Rows(self.training)
        return self._loader(rows, sampler=self.training_sampler(len(rows)), drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of this rank's validation batches, in order; the last may be incomplete.

        All ranks read the same number of examples: the last ``number % world_size`` are skipped.
        """
        rows = _Rows(self.validation)
        rank, world_size = self._ranks
        return self._loader(Subset(rows, range(rank, len(rows) // world_size * world_size, world_size)))

    def _loader(self, rows: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(rows, collate_fn=_as_batch, **self._loader_options(), **options)


class _Rows(Dataset[Any]):
    """Examples, of which a batch is read at once."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError("examples are read in batches")

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the batch of these examples."""
        chosen = torch.tensor(indices)
        ids, labels, bucket, choices = self.examples
        batch: dict[str, Any] = {
            "input_ids": ids[chosen],
            "labels": labels[chosen],
            "bucket": bucket[chosen],
        }
        if choices is not None:
            batch["choices"] = {pool: right[chosen] for pool, right in choices.items()}
        return batch


def _as_batch(batch: Any) -> Any:
    """Return a batch unchanged, because it is already collated."""
    return batch
