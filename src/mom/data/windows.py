"""Windows of tokens, and an order of them that can be left and taken up again at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mom.data.token_files import TokenFile
from mom.errors import RequestError


class TokenWindows(Dataset[dict[str, torch.Tensor]]):
    """Non-overlapping windows of ``length`` tokens; the tokens after the last whole window are left out.

    Windows run across documents, which end in an end-of-text token.

    Args:
        file: the tokens.
        length: T, tokens per window.
    """

    def __init__(self, file: TokenFile, length: int) -> None:
        self.file = file
        self.length = length

    def __len__(self) -> int:
        return self.file.count // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Window ``index``: ``input_ids`` and ``labels``, int64 [T], equal; the model shifts the labels."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = self.file.tokens[index * self.length : (index + 1) * self.length].astype(np.int64)
        ids = torch.from_numpy(window)
        return {"input_ids": ids, "labels": ids}


class ScoringWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows to measure a language model on, of which every token is predicted at most once.

    Without a stride they are those of :class:`TokenWindows`, so that a model's loss is what its training
    measured: T-1 predictions in each. With a stride they overlap; labels that an earlier window predicted are
    -100, the last window is moved back to end with the file, and every token but the first is predicted,
    after at least ``length - stride`` tokens. A file shorter than one window is one window.

    Args:
        file: the tokens, two at least.
        length: T, tokens per window.
        stride: tokens from one window to the next, below ``length``.
    """

    def __init__(self, file: TokenFile, length: int, stride: int | None = None) -> None:
        self.file = file
        self.length = min(length, file.count)
        last = file.count - self.length
        self.starts = list(range(0, last + 1, stride or self.length))
        if stride is not None and self.starts[-1] < last:
            self.starts.append(last)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Window ``index``: ``input_ids`` and ``labels``, int64 [T]; the model shifts the labels."""
        start = self.starts[index]
        ids = torch.from_numpy(self.file.tokens[start : start + self.length].astype(np.int64))
        labels = ids.clone()
        if index:
            labels[: self.starts[index - 1] + self.length - start] = -100
        return {"input_ids": ids, "labels": labels}

    @property
    def num_left_out(self) -> int:
        """Tokens at the end that no window holds; 0 with a stride."""
        return self.file.count - self.starts[-1] - self.length


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
