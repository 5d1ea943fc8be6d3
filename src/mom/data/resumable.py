"""What every data module of ours shares: ranks, loaders, and an order of the training data that resumes exactly."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import Sampler

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


class ResumableSampler(Sampler[int]):
    """The samples of one rank, in an order that is a function of seed and epoch alone.

    Each epoch is one permutation of all samples, the same on every rank. Of it, step after step, all ranks
    together take the next ``world_size * batch_size`` samples, rank r every ``world_size``-th from the r-th
    on. So two ranks with B each see in every step the samples that one rank with 2 B sees. The incomplete
    last step of an epoch is dropped.

    The place in the order is the number of samples that all ranks have consumed, so it can be taken up with
    another number of ranks or another batch size.

    The DataLoader must have the same batch size. Lightning calls :meth:`set_epoch`; it must not replace the
    sampler by one of its own (``use_distributed_sampler=False``).

    Args:
        num_samples: in the dataset.
        batch_size: B, samples per batch of this rank.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        # Where the epoch was taken up: samples consumed by all ranks, in how many steps.
        self._consumed = 0
        self._steps = 0

    @property
    def samples_per_step(self) -> int:
        """Samples that all ranks together consume in one step."""
        return self.world_size * self.batch_size

    @property
    def num_steps(self) -> int:
        """Steps in the epoch: those before it was taken up, and those left from there."""
        return self._steps + (self.num_samples - self._consumed) // self.samples_per_step

    def __len__(self) -> int:
        """Samples of this rank in :attr:`num_steps` steps: of the whole epoch, as Lightning counts it."""
        return self.num_steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this rank from where the epoch was taken up to its end."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        end = self._consumed + (self.num_steps - self._steps) * self.samples_per_step
        for place in range(self._consumed + self.rank, end, self.world_size):
            yield int(order[place])

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; nothing happens if the sampler is there or further already."""
        if epoch > self.epoch:
            self.epoch, self._consumed, self._steps = epoch, 0, 0

    def state_after(self, steps: int, last_step: int | None = None) -> dict[str, int]:
        """The state once ``steps`` steps of this epoch were trained on.

        What a data loader has fetched ahead does not matter, so only the training loop can tell.

        Args:
            steps: of this epoch, counted from its start.
            last_step: where the training loop ends the epoch if before its end.
        """
        state = {"seed": self.seed, "num_samples": self.num_samples}
        if steps >= (self.num_steps if last_step is None else min(last_step, self.num_steps)):
            return {**state, "epoch": self.epoch + 1, "samples_consumed": 0, "steps": 0}
        consumed = self._consumed + (steps - self._steps) * self.samples_per_step
        return {**state, "epoch": self.epoch, "samples_consumed": consumed, "steps": steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the order where :meth:`state_after` left it.

        Raises:
            RequestError: the state is of another seed or of another number of samples.
        """
        if state["seed"] != self.seed:
            raise RequestError("seed", self.seed, f"{state['seed']}, as in the checkpoint to be resumed")
        if state["num_samples"] != self.num_samples:
            raise RequestError(
                "ckpt", f"data of {self.num_samples} windows", f"the checkpoint's own, {state['num_samples']}"
            )
        self.epoch = state["epoch"]
        self._consumed = state["samples_consumed"]
        self._steps = state["steps"]
