"""Windows of tokens for training and evaluation."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from mom.data.token_files import TokenFile
from mom.errors import UsageError

if TYPE_CHECKING:
    from mom.model import MoMConfig


class TokenWindows(Dataset[dict[str, torch.Tensor]]):
    """Non-overlapping windows of ``length`` tokens; tokens after the last full window are skipped.

    Windows cross document boundaries, which are marked by an end-of-text token.

    Args:
        file: the tokens.
        length: tokens per window, T.
        separator: the end-of-text token, if attention stays inside a document; see :func:`document_positions`.
    """

    def __init__(self, file: TokenFile, length: int, separator: int | None = None) -> None:
        self.file = file
        self.length = length
        self.separator = separator

    def __len__(self) -> int:
        return self.file.count // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``labels``, int64 (T,), which are equal because the model shifts the labels.

        With a separator, also ``position_ids``, int64 (T,).
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = self.file.read(index * self.length, (index + 1) * self.length).astype(np.int64)
        ids = torch.from_numpy(window)  # (T,)
        return {"input_ids": ids, "labels": ids} | _positions(ids, self.separator)


class MixedWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows of several corpora, each with its share.

    An epoch is as short as it can be with every window of every corpus in it, so the corpus with the most windows for
    its weight is read once and the others repeat. The order is that of the corpora; a sampler shuffles them.

    Args:
        windows: the windows of each corpus, none empty.
        weights: their shares, above 0.
    """

    def __init__(self, windows: Sequence[TokenWindows], weights: Sequence[float]) -> None:
        self.windows = windows
        longest = max(len(part) / weight for part, weight in zip(windows, weights, strict=True))
        counts = [
            max(len(part), round(longest * weight)) for part, weight in zip(windows, weights, strict=True)
        ]
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return what :class:`TokenWindows` does."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self.ends, index)
        start = self.ends[part - 1] if part else 0
        return self.windows[part][(index - start) % len(self.windows[part])]


def document_positions(ids: torch.Tensor, separator: int) -> torch.Tensor:
    """Return each token's position in its document, int64 (T,); the model attends within runs of positions.

    The end-of-text token begins the next document, at position 0: the last token of a document predicts it, and it
    predicts the first token of the next, as a beginning-of-text token. So every token is predicted from its own
    document alone. A document that began before the window begins with it.

    Args:
        ids: tokens of a window, (T,).
        separator: the end-of-text token.
    """
    index = torch.arange(len(ids))
    start = torch.where(ids == separator, index, 0).cummax(dim=0).values  # (T,)
    return index - start


def _positions(ids: torch.Tensor, separator: int | None) -> dict[str, torch.Tensor]:
    return {} if separator is None else {"position_ids": document_positions(ids, separator)}


def check_separable(config: MoMConfig) -> None:
    """Reject ``data.document_mask`` for a model that reads the tokens before a token other than by attention.

    Raises:
        UsageError: a pool streams over the sequence.
    """
    streaming = [layout.name for layout in config.pools() if layout.kind.streams] if config.num_stages else []
    if streaming:
        raise UsageError(
            f"data.document_mask cannot be combined with the pool {streaming[0]}, which streams over the whole sequence"
        )


class ScoringWindows(Dataset[dict[str, torch.Tensor]]):
    """Windows for evaluating a language model, which score every token at most once.

    Without a stride, they are the windows of :class:`TokenWindows`, so the loss matches validation during training:
    T - 1 predictions per window. With a stride, windows overlap. Labels that an earlier window scored are -100, the
    last window ends at the end of the file, and every token but the first is scored with a context of at least
    ``length - stride`` tokens. A file shorter than a window is a single window.

    Args:
        file: the tokens, at least two.
        length: tokens per window, T.
        stride: tokens from the start of one window to the next, less than ``length``.
        separator: as in :class:`TokenWindows`.
    """

    def __init__(
        self, file: TokenFile, length: int, stride: int | None = None, separator: int | None = None
    ) -> None:
        self.file = file
        self.separator = separator
        self.length = min(length, file.count)
        last = file.count - self.length
        self.starts = list(range(0, last + 1, stride or self.length))
        if stride is not None and self.starts[-1] < last:
            self.starts.append(last)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``labels``, int64 (T,); the model shifts the labels."""
        start = self.starts[index]
        ids = torch.from_numpy(self.file.read(start, start + self.length).astype(np.int64))  # (T,)
        labels = ids.clone()
        if index:
            labels[: self.starts[index - 1] + self.length - start] = -100
        return {"input_ids": ids, "labels": labels} | _positions(ids, self.separator)

    @property
    def num_skipped(self) -> int:
        """Tokens after the last full window; 0 with a stride."""
        return self.file.count - self.starts[-1] - self.length
