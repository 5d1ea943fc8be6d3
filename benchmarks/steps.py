"""Training steps at the size ``small``: forward and backward pass, without the optimizer."""

from __future__ import annotations

import torch

from benchmarks.gpt2 import build_gpt2
from benchmarks.naive import naive_loss
from benchmarks.report import Measured
from benchmarks.setting import SIZES, Setting, Size
from benchmarks.timing import ratios, timed
from mom.cost.machine import peak_memory

SMALL = SIZES["small"]
PRODUCTS = 20
"""Matmuls of 2048 × 768 by 768 × 3072 that a step is compared with: a feed-forward's first projection."""


def of_matmul_rate(dtype: torch.dtype, size: Size = SMALL, repeats: int = 3) -> Measured:
    """Measure the useful FLOP/s of a step, divided by that of a row of matmuls."""
    setting = Setting(size, dtype)
    model = setting.model(size.config())
    left, right = torch.randn(2048, 768, dtype=dtype), torch.randn(768, 3072, dtype=dtype)
    out = torch.empty(2048, 3072, dtype=dtype)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=out)

    flops = setting.flops(model.config, setting.usage(model))
    share = flops / (PRODUCTS * 2 * left.numel() * right.shape[1])
    seconds = timed({"step": setting.mom_training(model), "products": products}, repeats)
    return Measured.of(ratios(seconds, "products", "step", share), seconds)


def to_gpt2(size: Size = SMALL, repeats: int = 3) -> Measured:
    """Measure a step, divided by that of transformers' GPT-2 and the ratio of their FLOPs."""
    setting = Setting(size)
    model = setting.model(size.config())
    gpt2 = build_gpt2(size, size.layers).train()
    flops = setting.flops(model.config, setting.usage(model))
    work = {"step": setting.mom_training(model), "gpt2": setting.training(gpt2, use_cache=False)}
    seconds = timed(work, repeats)
    return Measured.of(
        ratios(seconds, "step", "gpt2", setting.flops(size.plain(size.layers)) / flops), seconds
    )


def pool_growth(
    dtype: torch.dtype = torch.bfloat16, size: Size = SMALL, repeats: int = 3, device: str = "cpu"
) -> Measured:
    """Measure a step with 64 modules in each pool, divided by one with 4."""
    setting = Setting(size, dtype, device)
    counts = {
        str(count): size.config(num_attention_modules=count, num_ffn_modules=count) for count in (4, 64)
    }
    work = {name: setting.mom_training(setting.model(config)) for name, config in counts.items()}
    seconds = timed(work, repeats, device=device)
    return Measured.of(ratios(seconds, "64", "4"), seconds)


def half_skipped(size: Size = SMALL, repeats: int = 3) -> Measured:
    """Measure the rounds of a step with half of the choices forced to SKIP, divided by those with none.

    The time of the same blocks without rounds is subtracted from both. A token that skips runs no module (``skip_rule:
    first``), and every other step of a token skips: a token and its neighbors, a round and the next, its two pools.
    """
    setting = Setting(size)
    config = size.config(skip_rule="first", skip_exploration=0.0, skip_trials=0.0)
    model = setting.model(config)
    rest = setting.model(
        size.config(num_stages=0, num_bottom_blocks=config.fixed_depth - config.num_top_blocks)
    )
    tokens, rounds = setting.ids.shape, config.num_rounds
    step = torch.arange(tokens[1])[:, None] + torch.arange(rounds)  # (T, R)
    none, half = {}, {}
    for layout in config.pools():
        places = torch.rand(*tokens, rounds, layout.num_modules).argsort(-1)[..., : config.top_k]
        skips = ((step + layout.position) % 2 == 0)[..., None]  # (T, R, 1)
        none[layout.name] = places  # (B, T, R, K)
        half[layout.name] = torch.where(skips & (torch.arange(config.top_k) == 0), layout.num_modules, places)
    work = {
        "none": setting.mom_training(model, choices=none),
        "half": setting.mom_training(model, choices=half),
        "rest": setting.mom_training(rest),
    }
    seconds = timed(work, repeats)
    routed = {
        name: [all_ - rest for all_, rest in zip(seconds[name], seconds["rest"], strict=True)]
        for name in ("none", "half")
    }
    return Measured.of(ratios(routed, "half", "none"), seconds)


def memory(dtype: torch.dtype = torch.float32, size: Size = SMALL) -> Measured:
    """Measure the peak memory of a step with weights and gradients, divided by that of a naive implementation."""
    setting = Setting(size, dtype)
    model = setting.model(size.config())
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

    def naive() -> None:
        with setting.autocast():
            loss = naive_loss(model, setting.ids)
        loss.backward()
        model.zero_grad(set_to_none=True)

    ours, theirs = (weights + peak_memory(work, "cpu") for work in (setting.mom_training(model), naive))
    return Measured.of([ours / theirs])


def narrow(width: int, num_heads: int, num_tokens: int, repeats: int = 60) -> Measured:
    """Measure a step of four rounds over 4 + 4 modules with K 1 and no SKIP, divided by that of four plain blocks."""
    depth, length = 4, 16
    ends = {"num_bottom_blocks": 0, "num_top_blocks": 0, "anchors": False}
    options = {**ends, "num_rounds": depth, "top_k": 1, "router": "linear", "skip": False}
    size = Size(width, num_heads, 64, length, num_tokens // length, depth, 0, options)
    setting = Setting(size)
    models = {"mom": size.config(), "plain": size.plain(depth)}
    work = {name: setting.mom_training(setting.model(config)) for name, config in models.items()}
    seconds = timed(work, repeats, warm_up=3)
    return Measured.of(ratios(seconds, "mom", "plain"), seconds)
