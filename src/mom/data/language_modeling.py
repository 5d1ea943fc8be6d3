"""The data module of language-model pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from mom.data.prepare import PreparedCorpus, prepare
from mom.data.resumable import ResumableDataModule, check_batch_size
from mom.data.windows import TokenWindows
from mom.errors import UsageError, as_written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig


_MASK = "document_mask"


class LanguageModelingDataModule(ResumableDataModule):
    """Windows of a tokenized corpus, in an order that resumes exactly.

    Batches are ``{"input_ids", "labels"}``, int64 (B, T), and with ``data.document_mask`` also ``position_ids``; labels
    are not shifted. :meth:`setup` works without a
    Trainer and may be called more than once.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._prepared: PreparedCorpus | None = None

    def prepare_data(self) -> None:
        """Tokenize the corpus into the cache if it is not there yet.

        Raises:
            UsageError: see :func:`mom.data.prepare.prepare`.
        """
        if self._prepared is None:
            self._prepared = prepare(self.config)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared corpus.

        Raises:
            UsageError: the corpus has less than one validation window or one training batch.
        """
        self.prepare_data()
        for name, windows in (("training", self.train_windows), ("validation", self.validation_windows)):
            if len(windows) == 0:
                source = (
                    f"data.path={self.config.path}" if self.config.path else f"corpus {self.config.corpus}"
                )
                raise UsageError(
                    f"{source} has only {windows.file.count} tokens for {name}; each split needs at least "
                    f"data.sequence_length={self.config.sequence_length}"
                )
        check_batch_size(self.config.batch_size, self._ranks[1], len(self.train_windows), "training windows")

    @property
    def prepared(self) -> PreparedCorpus:
        """The prepared corpus. Raises RuntimeError before :meth:`prepare_data`."""
        if self._prepared is None:
            raise RuntimeError("call setup() before using the data module")
        return self._prepared

    @property
    def train_windows(self) -> TokenWindows:
        """All training windows."""
        return TokenWindows(self.prepared.train, self.config.sequence_length, self._separator)

    @property
    def validation_windows(self) -> TokenWindows:
        """All validation windows."""
        return TokenWindows(self.prepared.validation, self.config.sequence_length, self._separator)

    @property
    def _separator(self) -> int | None:
        """The end-of-text token, if attention stays inside a document."""
        return self.tokenizer.eos_token_id if self.config.document_mask else None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the corpus."""
        return self.prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of rows in the token embedding."""
        return self.prepared.vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the corpus's content, 64 hexadecimal digits."""
        return self.prepared.fingerprint

    @property
    def num_train_tokens(self) -> int:
        """Number of training tokens."""
        return self.prepared.train.count

    @property
    def num_validation_tokens(self) -> int:
        """Number of validation tokens."""
        return self.prepared.validation.count

    @property
    def validation_bytes_per_token(self) -> float:
        """UTF-8 bytes of text per validation token; see :func:`mom.data.token_files.bits_per_byte`."""
        return self.prepared.validation.bytes_per_token

    @property
    def key(self) -> str:
        """Hash of the corpus's text, tokenizer, and split."""
        return self.prepared.key

    @property
    def source(self) -> tuple[str, str]:
        """The option and the value that select the corpus."""
        return "data.corpus", self.config.corpus

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the order of the data, and whether attention stays inside a document."""
        state = super().state_dict()
        return state | {_MASK: self.config.document_mask} if state else state

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint's state is one of this data, in this order.

        Raises:
            UsageError: the checkpoint was trained on other data, in another order, or with another mask.
        """
        super().check_state(state)
        if state.get(_MASK, False) != self.config.document_mask:
            wanted, got = (
                as_written(value) for value in (state.get(_MASK, False), self.config.document_mask)
            )
            raise UsageError(f"data.document_mask must be {wanted} as in the checkpoint, got {got}")

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return a loader of this rank's training batches; see :class:`~mom.data.resumable.ResumableSampler`."""
        windows = self.train_windows
        return DataLoader(
            windows, sampler=self.training_sampler(len(windows)), drop_last=True, **self._loader_options()
        )

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return a loader of this rank's validation batches, in order; the last may be incomplete.

        Each rank reads every ``world_size``-th window, and all ranks read the same number: a rank with an extra batch
        would wait for the others forever if the model is sharded. The last ``num_windows % world_size`` windows are
        skipped.
        """
        windows = self.validation_windows
        rank, world_size = self._ranks
        subset = Subset(windows, range(rank, len(windows) // world_size * world_size, world_size))
        return DataLoader(subset, **self._loader_options())
