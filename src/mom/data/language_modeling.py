"""The data module of language-model pre-training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Subset

from mom.data.prepare import PreparedCorpus, prepare
from mom.data.resumable import ResumableDataModule
from mom.data.windows import TokenWindows
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig


class LanguageModelingDataModule(ResumableDataModule):
    """Windows of a tokenized corpus, in an order that resumes exactly.

    Batches are ``{"input_ids", "labels"}``, int64 [B, T], the labels not shifted.

    Before :meth:`setup` only the arguments are known; it may be called without a Trainer, and a second time.

    Args:
        config: the ``data`` group.
        seed: of the order of the training windows.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._prepared: PreparedCorpus | None = None

    def prepare_data(self) -> None:
        """Tokenize the corpus into the cache, unless it is there.

        Raises:
            RequestError: see :func:`mom.data.prepare.prepare`.
        """
        if self._prepared is None:
            self._prepared = prepare(self.config)

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared corpus.

        Raises:
            RequestError: the corpus gives less than one window for validation or one batch for training.
        """
        self.prepare_data()
        for name, windows in (("training", self.train_windows), ("validation", self.validation_windows)):
            if len(windows) == 0:
                raise RequestError(
                    "data.path" if self.config.corpus == "text" else "data.corpus",
                    f"{self.config.path or self.config.corpus} ({windows.file.count} tokens for {name})",
                    f"a corpus of at least one window of {self.config.sequence_length} tokens for training "
                    "and one for validation",
                )
        if len(self.train_windows) < self.config.batch_size * self._ranks[1]:
            raise RequestError(
                "data.batch_size",
                f"{self.config.batch_size} on {self._ranks[1]} process(es)",
                f"at most {len(self.train_windows)} in all, the training windows that the corpus gives",
            )

    @property
    def prepared(self) -> PreparedCorpus:
        """The corpus as tokens. Raises RuntimeError before :meth:`prepare_data`."""
        if self._prepared is None:
            raise RuntimeError("call setup() before using the data module")
        return self._prepared

    @property
    def train_windows(self) -> TokenWindows:
        """All training windows."""
        return TokenWindows(self.prepared.train, self.config.sequence_length)

    @property
    def validation_windows(self) -> TokenWindows:
        """All validation windows."""
        return TokenWindows(self.prepared.validation, self.config.sequence_length)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the corpus."""
        return self.prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        """Rows an embedding of the tokens needs."""
        return self.prepared.vocab_size

    @property
    def fingerprint(self) -> str:
        """Of the corpus's content, 64 hexadecimal digits."""
        return self.prepared.fingerprint

    @property
    def num_train_tokens(self) -> int:
        """Tokens to train on."""
        return self.prepared.train.count

    @property
    def num_validation_tokens(self) -> int:
        """Tokens held out."""
        return self.prepared.validation.count

    @property
    def validation_bytes_per_token(self) -> float:
        """UTF-8 bytes of text per validation token; see :func:`mom.data.token_files.bits_per_byte`."""
        return self.prepared.validation.bytes_per_token

    @property
    def key(self) -> str:
        """Of the prepared corpus: its text, tokenizer and split."""
        return self.prepared.key

    @property
    def source(self) -> tuple[str, str]:
        """The corpus."""
        return "data.corpus", self.config.corpus

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """This rank's training batches; see :class:`~mom.data.resumable.ResumableSampler`."""
        windows = self.train_windows
        return DataLoader(
            windows, sampler=self.training_sampler(len(windows)), drop_last=True, **self._loader_options()
        )

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """This rank's validation batches, in order, the last one as long as it comes.

        With several ranks each takes every ``world_size``-th window. All take equally many, since a rank with
        one batch more would wait for the others forever where the model is sharded; so the last
        ``num_windows % world_size`` windows are left out.
        """
        windows = self.validation_windows
        rank, world_size = self._ranks
        mine = Subset(windows, range(rank, len(windows) // world_size * world_size, world_size))
        return DataLoader(mine, **self._loader_options())
