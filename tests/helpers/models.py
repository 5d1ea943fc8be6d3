"""Small models with weights large enough that every path affects a comparison."""

from __future__ import annotations

from typing import Any

import torch

from mom.model import MoMConfig, MoMForCausalLM
from mom.model.routers.router import Router


def small_config(**changes: Any) -> MoMConfig:
    """Return a configuration that runs in milliseconds, with changed fields."""
    fields: dict[str, Any] = {
        "vocab_size": 61,
        "max_positions": 32,
        "d_model": 16,
        "num_heads": 2,
        "num_bottom_blocks": 1,
        "num_top_blocks": 1,
        "num_attention_modules": 3,
        "num_ffn_modules": 3,
        "num_rounds": 4,
        "router": "gru",
        "router_dim": 8,
        "router_prior": "none",
        "temperature": 0.5,
        "balance_coefficient": 0.01,
        "skip_bias": 0.0,
        "skip_exploration": 0.0,  # training computes what evaluation does
        "skip_trials": 0.0,
        "skip_price": 0.0,
    }
    return MoMConfig(**(fields | changes))


def small_model(seed: int = 0, std: float = 0.25, **changes: Any) -> MoMForCausalLM:
    """Return a model in evaluation mode with random weights of standard deviation ``std`` (norm scales around 1)."""
    generator = torch.Generator().manual_seed(seed)
    model = MoMForCausalLM(small_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            scale_of_norm = "norm" in name and name.endswith("weight")
            if not name.endswith("prior"):
                parameter.copy_(1 + noise if scale_of_norm else noise)
        for name, buffer in model.named_buffers():
            if name.endswith("balance_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * std)
    return model


def tokens(batch: int, length: int, seed: int = 0, vocab_size: int = 61) -> torch.Tensor:
    """Return random token ids, int64 [batch, length]."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def settle_randomly(model: MoMForCausalLM) -> None:
    """Settle about two thirds of the token IDs on random modules."""
    generator = torch.Generator().manual_seed(1)
    for router in (part for part in model.modules() if isinstance(part, Router)):
        if router.settled is not None:
            table, modules = router.settled, router.layout.num_modules
            drawn = torch.randint(0, modules, table.shape, generator=generator)
            table.copy_(drawn.where(torch.rand(table.shape, generator=generator) < 0.67, -1))


def decoded_in_parts(model: MoMForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of 12 tokens, [B, 12, V], computed in parts with a cache, one part a single token."""
    cache, parts = None, []
    for start, end in ((0, 2), (2, 7), (7, 8), (8, 12)):
        step = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        parts.append(step.logits)
    return torch.cat(parts, dim=1)
