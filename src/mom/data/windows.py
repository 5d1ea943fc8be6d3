"""Windows of tokens for training and evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from mom.data.token_files import TokenFile


class TokenWindows(Dataset[dict[str, torch.Tensor]]):
    """Non-overlapping windows of ``length`` tokens; tokens after the last full window are skipped.

    Windows cross document boundaries, which are marked by an end-of-text token.

    Args:
        file: the tokens.
        length: tokens per window, T.
    """

    def __init__(self, file: TokenFile, length: int) -> None:
        self.file = file
        self.length = length

    def __len__(self) -> int:
        return self.file.count // self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``labels``, int64 (T,), which are equal because the model shifts the labels."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = self.file.read(index * self.length, (index + 1) * self.length).astype(np.int64)
        ids = torch.from_numpy(window)  # (T,)
        return {"input_ids": ids, "labels": ids}


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
        """Return ``input_ids`` and ``labels``, int64 (T,); the model shifts the labels."""
        start = self.starts[index]
        ids = torch.from_numpy(self.file.read(start, start + self.length).astype(np.int64))  # (T,)
        labels = ids.clone()
        if index:
            labels[: self.starts[index - 1] + self.length - start] = -100
        return {"input_ids": ids, "labels": labels}

    @property
    def num_skipped(self) -> int:
        """Tokens after the last full window; 0 with a stride."""
        return self.file.count - self.starts[-1] - self.length
