"""Greedy decoding of one sequence with a cache, next to transformers' GPT-2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpt2 import build_gpt2
from benchmarks.report import Measured
from benchmarks.setting import SIZES, Setting, Size
from benchmarks.timing import ratios, timed
from mom.cost.estimate import flops_per_token


def to_gpt2(size: Size = SIZES["quickstart"], repeats: int = 5) -> Measured:
    """Measure the time of a token, divided by that of the GPT-2 with about the same FLOPs, and their ratio."""
    setting = Setting(size)
    model = setting.model(size.config()).eval()
    usage = setting.usage(model)
    plain = setting.plain_with_flops(setting.flops(model.config, usage))
    gpt2 = build_gpt2(size, plain.num_bottom_blocks).eval()
    new_tokens = min(size.new_tokens, size.length - 1)
    prompt = setting.ids[:1, : size.length - new_tokens]  # (1, T)
    ours, theirs = (
        flops_per_token(config, size.length, used).total
        for config, used in ((model.config, usage), (plain, None))
    )
    seconds = timed(
        {"mom": greedy(model, prompt, new_tokens), "gpt2": greedy(gpt2, prompt, new_tokens)}, repeats
    )
    return Measured.of(ratios(seconds, "mom", "gpt2", theirs / ours), seconds)


def greedy(model: Any, prompt: torch.Tensor, new_tokens: int) -> Callable[[], torch.Tensor]:
    """Return a function that decodes so many tokens after a prompt, [B, T], with the model's ``generate``."""
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    @torch.no_grad()
    def generate() -> torch.Tensor:
        return model.generate(prompt, do_sample=False, use_cache=True, pad_token_id=0, **length)

    return generate
