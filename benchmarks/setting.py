"""Benchmark settings: model sizes, precision, device, the tokens of a batch, and the training step on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mom.cost.estimate import Usage, flops_per_token, measured_usage
from mom.model import MoMConfig, MoMForCausalLM


@dataclasses.dataclass(frozen=True)
class Size:
    """A model size and the shapes of its measurements.

    Args:
        layers: layers of the GPT-2 to compare with.
        new_tokens: tokens to decode.
        options: other options of the model; the defaults are 2 bottom blocks, 1 stage of 8 rounds, 1 top block.
    """

    d_model: int
    num_heads: int
    vocab_size: int
    length: int
    batch: int
    layers: int
    new_tokens: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, **changes: Any) -> MoMConfig:
        """Return the configuration of the model."""
        fields = {
            "vocab_size": self.vocab_size,
            "max_positions": self.length,
            "d_model": self.d_model,
            "num_heads": self.num_heads,
        }
        return MoMConfig(**fields | dict(self.options) | changes)

    def plain(self, layers: int) -> MoMConfig:
        """Return the configuration of a plain transformer of this width."""
        return self.config(num_stages=0, num_bottom_blocks=layers, num_top_blocks=0)


SIZES = {
    "smallest": Size(16, 2, 64, 16, 2, 2, 4),
    "quickstart": Size(128, 4, 300, 256, 4, 8, 240, {"num_rounds": 4, "top_k": 1, "initializer_range": 0.05}),
    "small": Size(768, 12, 50257, 1024, 2, 12, 64),
    "medium": Size(1024, 16, 50257, 1024, 8, 24, 128),
    "large": Size(1280, 20, 50257, 1024, 8, 36, 128),
}


class Setting:
    """A size, a dtype of matmuls (by autocast unless float32), and a device, ``cpu`` or ``cuda``."""

    def __init__(self, size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.size, self.dtype, self.device = size, dtype, device
        torch.manual_seed(0)
        self.ids = torch.randint(size.vocab_size, (size.batch, size.length), device=device)  # (B, T)

    def autocast(self) -> torch.autocast:
        """Return the context of the trainer's mixed precision."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def model(self, config: MoMConfig) -> MoMForCausalLM:
        """Build a seeded model."""
        torch.manual_seed(0)
        return MoMForCausalLM(config).train().to(self.device)

    def usage(self, model: MoMForCausalLM) -> Usage:
        """Return the modules per step that a model's tokens use on the batch."""
        with torch.no_grad(), self.autocast():
            output = model(input_ids=self.ids, output_routing=True, logits_to_keep=1)
        return measured_usage(model.config, output.routing)

    def flops(self, config: MoMConfig, usage: Usage | None = None) -> float:
        """Return the useful FLOPs of a training step on the batch."""
        return flops_per_token(config, self.ids.shape[1], usage).training * self.ids.numel()

    def backward(self, model: Any, **inputs: Any) -> Tensor:
        """Run a model's forward and backward pass on the batch; return the loss."""
        with self.autocast():
            loss = model(input_ids=self.ids, labels=self.ids, **inputs).loss
        loss.backward()
        return loss.detach()

    def training(self, model: Any, **inputs: Any) -> Callable[[], None]:
        """Return a function that runs :meth:`backward` and discards the gradients."""

        def step() -> None:
            self.backward(model, **inputs)
            model.zero_grad(set_to_none=True)

        return step

    def mom_training(self, model: MoMForCausalLM, **inputs: Any) -> Callable[[], None]:
        """Return the training step of one of our models, which need not return its logits."""
        return self.training(model, output_logits=False, **inputs)

    def plain_with_flops(self, flops: float) -> MoMConfig:
        """Return the plain transformer whose training step has about as many FLOPs."""
        one, two = (self.flops(self.size.plain(layers)) for layers in (1, 2))
        return self.size.plain(max(1, round((flops - one) / (two - one)) + 1))
