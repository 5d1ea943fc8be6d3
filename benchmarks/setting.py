"""Benchmark settings: model sizes, precision, device, and the tokens of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mom.model import MoMConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """A model size and the shapes of its measurements; ``layers`` is the number of GPT-2 layers to compare with."""

    d_model: int
    num_heads: int
    vocab_size: int
    length: int
    batch: int
    layers: int
    matmul: int
    new_tokens: int
    sequences: int = 16  # decoded in one batch

    def config(self, **changes: Any) -> MoMConfig:
        """Return a configuration with the default layout: 2 bottom blocks, 1 stage, 1 top block."""
        fields = {
            "vocab_size": self.vocab_size,
            "max_positions": self.length,
            "d_model": self.d_model,
            "num_heads": self.num_heads,
        }
        return MoMConfig(**fields | changes)


SIZES = {
    "smallest": Size(16, 2, 64, 16, 2, 2, 64, 4),
    "quickstart": Size(128, 4, 4096, 256, 8, 8, 1024, 512),
    "small": Size(768, 12, 50257, 1024, 2, 12, 4096, 64),
    "medium": Size(1024, 16, 50257, 1024, 8, 24, 8192, 128),
    "large": Size(1280, 20, 50257, 1024, 8, 36, 8192, 128),
}


class Setting:
    """A size, a dtype of matmuls (by autocast unless float32), and a device, ``cpu`` or ``cuda``."""

    def __init__(self, size: Size, dtype: torch.dtype, device: str) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        torch.manual_seed(0)
        self.ids = torch.randint(size.vocab_size, (size.batch, size.length), device=device)  # (B, T)

    def autocast(self) -> torch.autocast:
        """Return the context of the trainer's mixed precision."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
