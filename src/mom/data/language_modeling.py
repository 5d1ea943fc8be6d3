"""The data module of language-model pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from mom.data.prepare import PreparedCorpus, combined_hash, prepare_corpora
from mom.data.resumable import ResumableDataModule, check_batch_size
from mom.data.windows import MixedWindows, TokenWindows
from mom.errors import UsageError, as_written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig
    from mom.data.token_files import TokenFile


_MASK = "document_mask"


class LanguageModelingDataModule(ResumableDataModule):
    """Windows of a tokenized corpus, in an order that resumes exactly.

    Batches are ``{"input_ids", "labels"}``, int64 (B, T), and with ``data.document_mask`` also ``position_ids``; labels
    are not shifted. :meth:`setup` works without a
    Trainer and may be called more than once.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._corpora: dict[str, PreparedCorpus] = {}

    def prepare_data(self) -> None:
        """Tokenize the corpora into the cache that are not there yet.

        Raises:
            UsageError: see :func:`mom.data.prepare.prepare_corpora`.
        """
        self._corpora = self._corpora or prepare_corpora(self.config)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared corpora.

        Raises:
            UsageError: a corpus has less than one validation window, or they have less than one training batch.
        """
        self.prepare_data()
        for name, corpus in self._corpora.items():
            splits = [("training", corpus.train)] if self._weights[name] else []
            for split, file in [*splits, ("validation", corpus.validation)]:
                if file.count < self.config.sequence_length:
                    source = f"corpus {name or self.config.corpus}"
                    if self.config.path:
                        source = f"data.path={self.config.path}"
                    raise UsageError(
                        f"{source} has only {file.count} tokens for {split}; each split needs at least "
                        f"data.sequence_length={self.config.sequence_length}"
                    )
        check_batch_size(self.config.batch_size, self._ranks[1], len(self.train_windows), "training windows")

    @property
    def corpora(self) -> dict[str, PreparedCorpus]:
        """The prepared corpora by name, one without a name if this is no mixture.

        Raises RuntimeError before :meth:`prepare_data`.
        """
        if not self._corpora:
            raise RuntimeError("call setup() before using the data module")
        return self._corpora

    @property
    def prepared(self) -> PreparedCorpus:
        """The corpus, of a mixture the first."""
        return next(iter(self.corpora.values()))

    @property
    def validation_sets(self) -> dict[str, float]:
        """The bytes per validation token (0 if unknown) of each corpus of a mixture, in the order of the loaders.

        Empty if this is no mixture.
        """
        return {name: corpus.validation.bytes_per_token for name, corpus in self.corpora.items() if name}

    @property
    def train_windows(self) -> TokenWindows | MixedWindows:
        """All training windows of an epoch."""
        windows = {name: self._windows(corpus.train) for name, corpus in self.corpora.items()}
        if self.config.corpus != "mixture":
            return windows[""]
        used = [name for name in windows if self._weights[name]]
        return MixedWindows([windows[name] for name in used], [self._weights[name] for name in used])

    @property
    def validation_windows(self) -> TokenWindows:
        """All validation windows, of a mixture those of the first corpus."""
        return self._windows(self.prepared.validation)

    def _windows(self, file: TokenFile) -> TokenWindows:
        return TokenWindows(file, self.config.sequence_length, self._separator)

    @property
    def _weights(self) -> dict[str, float]:
        return {name: part.weight for name, part in self.config.parts().items()} or {"": 1.0}

    @property
    def _separator(self) -> int | None:
        """The end-of-text token, if attention stays inside a document."""
        return self.tokenizer.eos_token_id if self.config.document_mask else None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the corpora."""
        return self.prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of rows in the token embedding."""
        return self.prepared.vocab_size

    @property
    def fingerprint(self) -> str:
        """Hash of the corpora's content, 64 hexadecimal digits."""
        return combined_hash(self.config, [corpus.fingerprint for corpus in self.corpora.values()])

    @property
    def num_train_tokens(self) -> int:
        """Number of training tokens."""
        used = [corpus.train.count for name, corpus in self.corpora.items() if self._weights[name]]
        return sum(used)

    @property
    def num_validation_tokens(self) -> int:
        """Number of validation tokens."""
        return sum(corpus.validation.count for corpus in self.corpora.values())

    @property
    def validation_bytes_per_token(self) -> float:
        """UTF-8 bytes of text per validation token; see :func:`mom.data.token_files.bits_per_byte`."""
        num_bytes = [corpus.validation.num_bytes for corpus in self.corpora.values()]
        return sum(num_bytes) / max(1, self.num_validation_tokens) if all(num_bytes) else 0.0

    @property
    def key(self) -> str:
        """Hash of the corpora's text, tokenizer, split, and weights."""
        return combined_hash(self.config, [corpus.key for corpus in self.corpora.values()])

    @property
    def source(self) -> tuple[str, str]:
        """The option and the value that select the corpus."""
        return super().source if self.config.path else ("data.corpus", self.config.corpus)

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

    def val_dataloader(
        self,
    ) -> DataLoader[dict[str, torch.Tensor]] | list[DataLoader[dict[str, torch.Tensor]]]:
        """Return a loader of this rank's validation batches, in order, or of a mixture one per corpus.

        The last batch may be incomplete. Each rank reads every ``world_size``-th window, and all ranks read the same
        number: a rank with an extra batch would wait for the others forever if the model is sharded. The last
        ``num_windows % world_size`` windows are skipped.
        """
        loaders = [self._validation_loader(corpus) for corpus in self.corpora.values()]
        return loaders if self.config.corpus == "mixture" else loaders[0]

    def _validation_loader(self, corpus: PreparedCorpus) -> DataLoader[dict[str, torch.Tensor]]:
        windows = self._windows(corpus.validation)
        rank, world_size = self._ranks
        subset = Subset(windows, range(rank, len(windows) // world_size * world_size, world_size))
        return DataLoader(subset, **self._loader_options())
