"""What every data module of ours shares: ranks, loaders, and an order of the training data that resumes exactly."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from mom.data.windows import ResumableSampler
from mom.errors import RequestError

if TYPE_CHECKING:
    from mom.config import DataSection

log = logging.getLogger(__name__)


class ResumableDataModule(pl.LightningDataModule):
    """Training data in an order that is a function of the seed, and whose place in it is kept in checkpoints.

    The state in a checkpoint counts the batches that were trained on, not those a loader fetched ahead. Give the
    Trainer ``use_distributed_sampler=False``: the ranks share out the samples here.

    Args:
        config: the ``data`` group.
        seed: of the order of the training samples.
    """

    def __init__(self, config: DataSection, seed: int) -> None:
        super().__init__()
        self.config: Any = config
        self.seed = seed
        self._sampler: ResumableSampler | None = None
        self._state: dict[str, Any] | None = None

    @property
    @abstractmethod
    def key(self) -> str:
        """Names the content of the training data; a checkpoint of data with another key is refused."""

    @property
    def source(self) -> tuple[str, str]:
        """The option that says which data, and its value, for errors."""
        return "data.path", str(self.config.path)

    def training_sampler(self, num_samples: int) -> ResumableSampler:
        """This rank's sampler of an epoch, taken up where the checkpoint being resumed left it.

        Args:
            num_samples: training samples there are.

        Raises:
            RequestError: the checkpoint was trained on other data, or in another order.
        """
        rank, world_size = self._ranks
        self._sampler = ResumableSampler(num_samples, self.config.batch_size, self.seed, rank, world_size)
        if self._state is not None:
            self._take_up(self._state)
        return self._sampler

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.config.batch_size,
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
        return {**state, "data": self.key, "sequence_length": self.config.sequence_length}

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
        if state["data"] != self.key:
            option, value = self.source
            raise RequestError(
                option,
                f"{value} ({self.key[:16]})",
                f"the data, tokenizer and split of the checkpoint to be resumed ({state['data'][:16]})",
            )
        assert self._sampler is not None
        self._sampler.load_state_dict(state)
        log.info("data taken up in epoch %d after %d samples", state["epoch"], state["samples_consumed"])

    def teardown(self, stage: str) -> None:
        """Forget the place in the order, so that the next fit starts from the beginning."""
        if stage == "fit":
            self._sampler = None
            self._state = None
