"""Measure the peak memory of a model's forward pass and training step, in fresh processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch

from mom.config import RunConfig
from mom.cost.machine import is_mixed, matmul_dtype, peak_memory, weight_dtype
from mom.model import MoMConfig, MoMForCausalLM

BuildOptimizer = Callable[..., torch.optim.Optimizer]


def measure_in_processes(
    model_config: MoMConfig, config: RunConfig, device: str, build_optimizer: BuildOptimizer
) -> dict[str, float]:
    """Measure a forward pass and a training step, each in its own process so that neither affects the other.

    Args:
        model_config: the model to measure.
        config: the request: batch, precision, checkpointing, and optimizer.
        device: ``cpu`` or ``cuda``.
        build_optimizer: builds the training step's optimizer; a module-level function, since it is pickled.

    Returns:
        The results of :func:`measure_memory` for both, in bytes.
    """
    shape = (config.data.batch_size, config.data.sequence_length)
    trainer = config.trainer
    request = (
        model_config.to_dict(),
        shape,
        str(trainer.precision),
        device,
        trainer.activation_checkpointing,
        build_optimizer,
        dataclasses.asdict(config.optimizer),
    )
    measured: dict[str, float] = {}
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from printing that it starts
    for what in ("forward", "training"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured |= pool.apply(measure_memory, (*request, what))
    return measured


def measure_memory(
    fields: dict[str, Any],
    shape: tuple[int, int],
    precision: str,
    device: str,
    checkpointing: bool,
    build_optimizer: BuildOptimizer,
    optimizer: dict[str, Any],
    what: str,
) -> dict[str, float]:
    """Measure the peak memory of a forward pass or a training step of a fresh model on random tokens, in bytes.

    Args:
        fields: fields of the ``MoMConfig``.
        shape: (B, T).
        precision: ``trainer.precision``.
        device: ``cpu`` or ``cuda``.
        checkpointing: ``trainer.activation_checkpointing``.
        build_optimizer: builds the optimizer from the model and ``optimizer``.
        optimizer: fields of an ``OptimizerSection``.
        what: ``forward``: logits of every position, without gradients; ``training``: the second training step, when
            the optimizer has its state.

    Returns:
        ``memory/<what>``; for a training step also its parts at the peak.
    """
    torch.manual_seed(0)
    dtype, mixed = matmul_dtype(precision), is_mixed(precision)
    model = MoMForCausalLM(MoMConfig(**fields))
    model.to(device=device, dtype=weight_dtype(precision))
    ids = torch.randint(model.config.vocab_size, shape, device=device)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

    def forward(**options: Any) -> Any:
        with torch.autocast(device, dtype, enabled=mixed):
            return model(input_ids=ids, **options)

    if what == "forward":
        model.eval()
        with torch.no_grad():
            activations = peak_memory(lambda: forward(use_cache=False), device)
            return {"memory/forward": weights + activations, "memory/forward_activations": activations}
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    built = build_optimizer(model, optimizer, fused=True)

    def step() -> None:
        forward(labels=ids, output_logits=False, output_routing=True).loss.backward()
        built.step()
        built.zero_grad()

    step()
    state = sum(
        value.nbytes
        for state in built.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    working = peak_memory(step, device)
    return {
        "memory/training": weights + state + working,
        "memory/parameters": weights,
        "memory/optimizer": state,
        "memory/working": working,
    }
