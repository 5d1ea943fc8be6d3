"""Parameter groups, the optimizer, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mom.config import MuonConfig, OptimizerConfig, optimizer_section
from mom.model.blocks import Block
from mom.model.pools.pool import Pool
from mom.model.routers.router import Router
from mom.training.muon import Muon


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
    """Split a model's trainable parameters into groups of the optimizer.

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


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ``id`` of each parameter that Muon updates: matrices of plain blocks and of modules.

    These are the weights of ``nn.Linear`` and the matrices of a pool, [N, D_in, D_out], except those of routers and of
    output heads, as Muon's authors advise (https://kellerjordan.github.io/posts/muon).
    """
    layers = {
        id(layer) for part in model.modules() if isinstance(part, Block | Pool) for layer in part.modules()
    }
    vectors = vector_parameters(model)
    return {
        id(parameter)
        for layer in model.modules()
        if id(layer) in layers
        for parameter in layer.parameters(recurse=False)
        if id(parameter) not in vectors and parameter.ndim == (3 if isinstance(layer, Pool) else 2)
    }


def build_optimizer(
    model: nn.Module, options: Mapping[str, Any], *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Build the configured optimizer over :func:`parameter_groups`.

    Args:
        model: the model to optimize.
        options: the fields of an ``OptimizerSection``, by default of ``OptimizerConfig``.
        fused: whether AdamW updates in one kernel (CPU and CUDA); ``None`` lets PyTorch choose.
    """
    section = optimizer_section(options)
    groups = parameter_groups(
        model,
        lr=section.lr,
        weight_decay=section.weight_decay,
        router_lr_multiplier=section.router_lr_multiplier,
    )
    if isinstance(section, MuonConfig):
        return Muon(
            _split_for_muon(model, groups), lr=section.lr, **section.arguments, **section.muon_arguments
        )
    extra = {"fused": fused} if type(section) is OptimizerConfig else {}
    optimizer: torch.optim.Optimizer = section.node.instantiate(params=groups, lr=section.lr, **extra)
    return optimizer


def _split_for_muon(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split the group ``matrices`` into ``matrices``, which Muon updates, and ``embeddings``, which AdamW does."""
    hidden = hidden_matrices(model)
    split: list[dict[str, Any]] = []
    for group in groups:
        if group["name"] != "matrices":
            split.append(group)
            continue
        for name, is_hidden in (("matrices", True), ("embeddings", False)):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in hidden) == is_hidden]
            split.append({**group, "name": name, "params": chosen, "muon": is_hidden})
    return [group for group in split if group["params"]]


def learning_rate_factor(
    step: int,
    *,
    warmup_steps: int,
    max_steps: int,
    min_lr_ratio: float,
    schedule: str = "cosine",
    decay_fraction: float = 0.2,
) -> float:
    """Return the learning rate of an optimizer step as a fraction of the peak.

    It rises linearly over the first ``warmup_steps`` steps (step 0 has 1/(warmup_steps+1) of the peak, not 0), then
    falls to ``min_lr_ratio`` at ``max_steps``: along half a cosine (``cosine``), along a line (``linear``), or along a
    line over the last ``decay_fraction`` of all steps (``wsd``; Hu et al. 2024, arXiv 2404.06395). It stays at the peak
    under ``constant``.

    Args:
        step: optimizer steps taken before this one.
        warmup_steps: steps below the peak.
        max_steps: total number of steps.
        min_lr_ratio: final fraction of the peak, also after ``max_steps``.
        schedule: ``cosine``, ``linear``, ``constant``, or ``wsd``.
        decay_fraction: length of the decay under ``wsd``; never begins before the end of the warmup.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    start = warmup_steps
    if schedule == "wsd":
        start = max(start, max_steps - round(decay_fraction * max_steps))
    progress = min(1.0, max(0, step - start) / max(1, max_steps - start))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return min_lr_ratio + (1 - min_lr_ratio) * remaining


def build_schedule(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], max_steps: int
) -> LRScheduler:
    """Build the configured scheduler, which steps once per optimizer step.

    Without ``scheduler``, it applies :func:`learning_rate_factor` to all groups.
    """
    section = optimizer_section(options)
    if section.scheduler is not None:
        scheduler: LRScheduler = section.build_scheduler(optimizer)
        return scheduler

    def factor(step: int) -> float:
        return learning_rate_factor(
            step,
            warmup_steps=section.warmup_steps,
            max_steps=max_steps,
            min_lr_ratio=section.min_lr_ratio,
            schedule=section.schedule,
            decay_fraction=section.decay_fraction,
        )

    return LambdaLR(optimizer, factor)
