"""The base of all data modules: ranks, loaders, and an order of the training data that resumes exactly."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import Sampler

from mom.errors import UsageError, as_written

if TYPE_CHECKING:
    from mom.config import DataSection

log = logging.getLogger(__name__)


class ResumableDataModule(pl.LightningDataModule):
    """Training data in an order that depends only on the seed, with the position stored in checkpoints.

    A checkpoint counts the batches that were trained on, not those that a loader prefetched. The Trainer needs
    ``use_distributed_sampler=False``, because samples are distributed to the ranks here.

    Args:
        config: the ``data`` group.
        seed: seed of the order of the training samples.
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
        """Hash of the training data; a checkpoint of other data cannot be resumed."""

    @property
    def contents(self) -> dict[str, str]:
        """Hashes of all data that ranks read, by what they are of."""
        option, value = self.source
        return {f"{option}={value}": self.key}

    @property
    def source(self) -> tuple[str, str]:
        """The option and the value that select the data, for errors."""
        return "data.path", as_written(self.config.path)

    def training_sampler(self, num_samples: int) -> ResumableSampler:
        """Return this rank's sampler of ``num_samples`` samples, resumed from the checkpoint if there is one.

        Raises:
            UsageError: the checkpoint was trained on other data or in another order.
        """
        rank, world_size = self._ranks
        self._sampler = ResumableSampler(num_samples, self.config.batch_size, self.seed, rank, world_size)
        if self._state is not None:
            self._resume(self._state)
        return self._sampler

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.config.batch_size,
            # A loader draws a random number at the start of every epoch. With the global generator, that would change
            # the dropout of a resumed run, which starts its loader at another step.
            "generator": torch.Generator(),
            "num_workers": self.config.num_workers,
            "persistent_workers": self.config.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the order of the data, as plain numbers and strings; empty outside training."""
        if self._sampler is None or self.trainer is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        batches = progress.total.processed
        if self._state is not None and self._state.get("batches") == batches:
            return self._state  # no batch has run since it was loaded, perhaps not even the end of its epoch
        last = self.trainer.num_training_batches  # infinite until the loop has a loader
        state = self._sampler.state_after(
            progress.current.processed, last_step=None if last == float("inf") else int(last)
        )
        return {
            **state,
            "batches": batches,
            "data": self.key,
            "sequence_length": self.config.sequence_length,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume a checkpoint's order, in the current loader or the next.

        Raises:
            UsageError: the checkpoint was trained on other data or in another order.
        """
        if not state_dict:
            return
        # Lightning warns that the loader cannot resume mid-epoch, because it does not know about this state.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        self._state = state_dict
        if self._sampler is not None:
            self._resume(state_dict)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint's state is one of this data, in this order.

        Raises:
            UsageError: the checkpoint was trained on other data or in another order.
        """
        length = self.config.sequence_length
        if state["sequence_length"] != length:
            raise UsageError(
                f"data.sequence_length must be {state['sequence_length']} as in the checkpoint, got {length}"
            )
        if state["data"] != self.key:
            option, value = self.source
            raise UsageError(
                f"cannot resume with {option}={value}: the checkpoint was trained on other data, or with another "
                f"tokenizer or split ({state['data'][:16]} instead of {self.key[:16]})"
            )
        if state["seed"] != self.seed:
            raise UsageError(f"seed must be {state['seed']} as in the checkpoint, got {self.seed}")

    def _resume(self, state: dict[str, Any]) -> None:
        self.check_state(state)
        assert self._sampler is not None
        self._sampler.load_state_dict(state)
        log.info("resuming the data in epoch %d after %d samples", state["epoch"], state["samples_consumed"])

    def teardown(self, stage: str) -> None:
        """Reset the position so that the next fit starts from the beginning."""
        if stage == "fit":
            self._sampler = None
            self._state = None


def check_batch_size(batch_size: int, num_processes: int, available: int, unit: str) -> None:
    """Raise :class:`~mom.errors.UsageError` if one batch per process needs more than the ``available`` items.

    Args:
        batch_size: ``data.batch_size``.
        num_processes: number of processes.
        available: number of training items.
        unit: ``training rows`` or ``training windows``.
    """
    needed = batch_size * num_processes
    if available < needed:
        processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
        raise UsageError(
            f"data.batch_size={batch_size} on {processes} needs {needed} {unit}, but the data has {available}"
        )


class ResumableSampler(Sampler[int]):
    """The samples of one rank, in an order that depends only on the seed and the epoch.

    Each epoch is a permutation of all samples, the same on every rank. In each step, all ranks together take the next
    ``world_size * batch_size`` samples; rank r takes every ``world_size``-th, starting from the r-th. So two ranks with
    batches of B see the same samples per step as one rank with batches of 2 B. The incomplete last step of an epoch is
    dropped.

    The position is the number of samples that all ranks have consumed, so training can resume with another number of
    ranks or another batch size.

    The DataLoader must have the same batch size. Lightning calls :meth:`set_epoch`; it must not replace the sampler
    with its own (``use_distributed_sampler=False``).

    Args:
        num_samples: number of samples in the dataset.
        batch_size: B, samples per batch of this rank.
        seed: seed of the order.
        rank: rank of this process.
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
        # The position at which the epoch was resumed: samples consumed by all ranks, and steps.
        self._consumed = 0
        self._steps = 0

    @property
    def samples_per_step(self) -> int:
        """Samples that all ranks together consume in one step."""
        return self.world_size * self.batch_size

    @property
    def num_steps(self) -> int:
        """Steps in the epoch, before and after the position at which it was resumed."""
        return self._steps + (self.num_samples - self._consumed) // self.samples_per_step

    def __len__(self) -> int:
        """Samples of this rank in :attr:`num_steps` steps, the full epoch, as Lightning counts it."""
        return self.num_steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this rank from the current position to the end of the epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        end = self._consumed + (self.num_steps - self._steps) * self.samples_per_step
        for position in range(self._consumed + self.rank, end, self.world_size):
            yield int(order[position])

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch, unless the sampler is already in it or past it."""
        if epoch > self.epoch:
            self.epoch, self._consumed, self._steps = epoch, 0, 0

    def state_after(self, steps: int, last_step: int | None = None) -> dict[str, int]:
        """Return the state after some steps of this epoch.

        Args:
            steps: training steps taken since the start of the epoch; prefetched batches do not count.
            last_step: the step after which the training loop ends the epoch, if it ends early.
        """
        state = {"seed": self.seed, "num_samples": self.num_samples}
        if steps >= (self.num_steps if last_step is None else min(last_step, self.num_steps)):
            return {**state, "epoch": self.epoch + 1, "samples_consumed": 0, "steps": 0}
        consumed = self._consumed + (steps - self._steps) * self.samples_per_step
        return {**state, "epoch": self.epoch, "samples_consumed": consumed, "steps": steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of :meth:`state_after`.

        Raises:
            UsageError: the state has another seed or another number of samples.
        """
        if state["seed"] != self.seed:
            raise UsageError(f"seed must be {state['seed']} as in the checkpoint, got {self.seed}")
        if state["num_samples"] != self.num_samples:
            raise UsageError(
                f"cannot resume from ckpt: it was trained on {state['num_samples']} samples, but the data has "
                f"{self.num_samples}"
            )
        self.epoch = state["epoch"]
        self._consumed = state["samples_consumed"]
        self._steps = state["steps"]
