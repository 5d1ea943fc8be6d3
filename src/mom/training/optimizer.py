"""AdamW's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mom.model.routers.router import Router


def vector_parameters(model: nn.Module) -> set[int]:
    """Return the ``id`` of each parameter that is a vector and therefore not decayed.

    Vectors are parameters of fewer than two dimensions (biases, LayerNorms), and those that a module lists in
    ``VECTORS``: a pool stacks the vectors of its N modules into one [N, D] tensor, and a router's prior has one bias
    per round.
    """
    vectors: set[int] = set()
    for module in model.modules():
        declared: frozenset[str] = getattr(module, "VECTORS", frozenset())
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or name in declared:
                vectors.add(id(parameter))
    return vectors


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, router_lr_multiplier: float = 1.0
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into AdamW groups.

    Matrices (including stacked matrices and embeddings) are decayed, vectors are not. Routers have their own groups,
    with ``lr * router_lr_multiplier``, because after upcycling only the routers are untrained. Tied parameters count
    once; empty groups are omitted.

    Returns:
        Dictionaries with ``name`` (``matrices``, ``vectors``, ``router_matrices``, ``router_vectors``),
        ``params``, ``lr``, and ``weight_decay``.
    """
    vectors = vector_parameters(model)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    in_router = {id(parameter) for router in routers for parameter in router.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {
            "name": ("router_" if is_router else "") + ("vectors" if is_vector else "matrices"),
            "params": [
                p for p in trainable if (id(p) in in_router, id(p) in vectors) == (is_router, is_vector)
            ],
            "lr": lr * router_lr_multiplier if is_router else lr,
            "weight_decay": 0.0 if is_vector else weight_decay,
        }
        for is_router in (False, True)
        for is_vector in (False, True)
    ]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(trainable), "every parameter must be in exactly one group"
    return [group for group in groups if group["params"]]


def build_adamw(
    model: nn.Module, options: Mapping[str, Any], *, fused: bool | None = None
) -> torch.optim.AdamW:
    """Build AdamW over :func:`parameter_groups`.

    Args:
        model: the model to optimize.
        options: the fields of ``OptimizerConfig``.
        fused: whether to update in one kernel (CPU and CUDA); ``None`` lets PyTorch choose.
    """
    groups = parameter_groups(
        model,
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        router_lr_multiplier=options["router_lr_multiplier"],
    )
    return torch.optim.AdamW(
        groups, lr=options["lr"], betas=tuple(options["betas"]), eps=options["eps"], fused=fused
    )


def learning_rate_factor(
    step: int, *, warmup_steps: int, max_steps: int, min_lr_ratio: float, schedule: str = "cosine"
) -> float:
    """Return the learning rate of an optimizer step as a fraction of the peak.

    It rises linearly over the first ``warmup_steps`` steps (step 0 has 1/(warmup_steps+1) of the peak, not 0), then
    falls along half a cosine to ``min_lr_ratio`` at ``max_steps``, or stays at the peak (``constant``).

    Args:
        step: optimizer steps taken before this one.
        warmup_steps: steps below the peak.
        max_steps: total number of steps.
        min_lr_ratio: final fraction of the peak under ``cosine``, also after ``max_steps``.
        schedule: ``cosine`` or ``constant``.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(optimizer: torch.optim.Optimizer, options: Mapping[str, Any], max_steps: int) -> LambdaLR:
    """Build the scheduler that applies :func:`learning_rate_factor` to all groups, once per optimizer step."""

    def factor(step: int) -> float:
        return learning_rate_factor(
            step,
            warmup_steps=options["warmup_steps"],
            max_steps=max_steps,
            min_lr_ratio=options["min_lr_ratio"],
            schedule=options["schedule"],
        )

    return LambdaLR(optimizer, factor)
