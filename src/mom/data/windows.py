"""Windows of tokens, and an order of them that can be left and taken up again at any batch."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from mom.data.token_files import TokenFile


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
