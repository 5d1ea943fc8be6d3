"""The data module of language-model pre-training."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Subset

from mom.data.prepare import PreparedCorpus, prepare
from mom.data.windows import ResumableSampler, TokenWindows
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

log = logging.getLogger(__name__)


class LanguageModelingDataModule(pl.LightningDataModule):
    """Windows of a tokenised corpus, in an order that resumes exactly.

    Batches are ``{"input_ids", "labels"}``, int64 [B, T], the labels not shifted. The state in a checkpoint
    counts the batches that were trained on, not those a loader fetched ahead. Give the Trainer
    ``use_distributed_sampler=False``: the ranks share out the windows here.

    Before :meth:`setup` only the arguments are known; it may be called without a Trainer, and a second time.

    Args:
        config: the ``data`` group.
        seed: of the order of the training windows.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self._prepared: PreparedCorpus | None = None
        self._sampler: ResumableSampler | None = None
        self._state: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        """Tokenise the corpus into the cache, unless it is there.

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
        """UTF-8 bytes of text per validation token; see :func:`mom.data.token_file.bits_per_byte`."""
        return self.prepared.validation.bytes_per_token

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """This rank's training batches; see :class:`~mom.data.windows.ResumableSampler`."""
        windows = self.train_windows
        rank, world_size = self._ranks
        self._sampler = ResumableSampler(len(windows), self.config.batch_size, self.seed, rank, world_size)
        if self._state is not None:
            self._take_up(self._state)
        return DataLoader(
            windows,
            batch_size=self.config.batch_size,
            sampler=self._sampler,
            drop_last=True,
            **self._loader_options(),
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
        return DataLoader(mine, batch_size=self.config.batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            # Its own, since a loader draws from it at the start of every epoch, which would move the random
            # numbers of the model (dropout) where a resumed run starts its loader at another moment.
            "generator": torch.Generator(),
            "num_workers": self.config.num_workers,
            "persistent_workers": self.config.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where training is in the order of the data: plain numbers and strings; empty outside training."""
        if self._sampler is None or self.trainer is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        last = self.trainer.num_training_batches  # infinite until the loop has its loader
        state = self._sampler.state_after(
            progress.processed, last_step=None if last == float("inf") else int(last)
        )
        return {**state, "data": self.prepared.key, "sequence_length": self.config.sequence_length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the order of a checkpoint, in the loader that is or the one to come.

        Raises:
            RequestError: the checkpoint was trained on other data, or in another order.
        """
        if not state_dict:
            return
        # Lightning warns that the loader cannot resume mid-epoch, as it does not know of the state kept here.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        self._state = state_dict
        if self._sampler is not None:
            self._take_up(state_dict)

    def _take_up(self, state: dict[str, Any]) -> None:
        if state["sequence_length"] != self.config.sequence_length:
            raise RequestError(
                "data.sequence_length",
                self.config.sequence_length,
                f"{state['sequence_length']}, as in the checkpoint to be resumed",
            )
        if state["data"] != self.prepared.key:
            raise RequestError(
                "data.corpus",
                f"{self.config.corpus} ({self.prepared.key[:16]})",
                f"the corpus, tokenizer and split of the checkpoint to be resumed ({state['data'][:16]})",
            )
        assert self._sampler is not None
        self._sampler.load_state_dict(state)
        log.info("data taken up in epoch %d after %d samples", state["epoch"], state["samples_consumed"])

    def teardown(self, stage: str) -> None:
        """Forget the place in the order, so that the next fit starts from the beginning."""
        if stage == "fit":
            self._sampler = None
            self._state = None
