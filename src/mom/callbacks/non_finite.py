"""Divergence: an optimizer step whose gradient is not finite is not taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mom.callbacks.ranks import gather

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 20


class NonFiniteError(RuntimeError):
    """Training diverged; the message names step, ranks and modules."""


class NonFinite(Callback):
    """Looks at the gradient before every optimizer step; where that is not finite the step is not taken.

    A loss that is not finite on one rank makes the averaged gradient so on all of them, so every rank comes
    to the same decision without asking the others. Which ranks and which modules were at fault is found by
    running the step's micro-batches through the model again. Costs one norm and one transfer to the host for
    each step. With ``precision: 16-mixed`` overflow is part of the method, and its loss scaler sees to it.

    Args:
        action: ``stop`` raises, with the weights and checkpoints as they were before the step; ``skip``
            leaves the step out and goes on (the schedule moves on, the optimizer's state does not), but
            raises after 20 steps in a row.

    Raises:
        NonFiniteError: on every rank.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"action: {action}; stop or skip")
        self._action = action
        self._micro_batches: list[Any] = []
        self._in_a_row = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the micro-batch until its optimizer step."""
        self._step_before = trainer.global_step
        self._micro_batches.append(batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Drop the micro-batches of a step that is done."""
        if trainer.global_step > self._step_before:
            self._micro_batches.clear()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop or skip where the gradient is not finite."""
        if trainer.precision == "16-mixed":
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if bool(norm.isfinite()):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        found = f"step {trainer.global_step + 1}: {self._diagnosis(trainer, pl_module)}"
        if self._action == "stop":
            raise NonFiniteError(
                f"{found}; the step was not taken (trainer.on_nonfinite=skip goes on without it)"
            )
        if self._in_a_row == MOST_IN_A_ROW:
            raise NonFiniteError(f"{found}; {MOST_IN_A_ROW} steps in a row were left out")
        if trainer.is_global_zero:
            log.warning("%s; the step is left out", found)
        for parameter in pl_module.parameters():
            parameter.grad = None  # the optimizer passes over parameters without a gradient

    def _diagnosis(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Which rank's loss was not finite and where in the model that began, or else whose gradient."""
        found = None
        # A sharded model can only be run by all ranks together, which is not worth it here.
        if not any(isinstance(parameter, DTensor) for parameter in pl_module.parameters()):
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                found = next(
                    (
                        where
                        for batch in self._micro_batches
                        if (where := _first_non_finite(pl_module, batch))
                    ),
                    None,
                )
        ranks = [f"rank {rank}: {where}" for rank, where in enumerate(gather(found)) if where is not None]
        if ranks:
            return f"the loss is not finite; {'; '.join(ranks)}"
        names = [
            name
            for name, parameter in pl_module.named_parameters()
            if parameter.grad is not None and not bool(_local(parameter.grad).isfinite().all())
        ]
        # Backward goes from the end of the model to its start, so the last one was the first.
        nearest = names[-1] if names else "another rank"
        return f"the gradient is not finite, nearest to the loss that of {nearest}"


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_non_finite(pl_module: Any, batch: Any) -> str | None:
    """The innermost module that first puts out NaN or infinity on this batch; ``None`` if none does."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(_is_bad(tensor) for tensor in _tensors(output)):
                found.append(f"first in the output of {name}")

        return hook

    handles = [part.register_forward_hook(look(name)) for name, part in pl_module.named_modules() if name]
    try:
        pl_module.run_model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_bad(tensor: Tensor) -> bool:
    # Minus infinity is how a router's record says that a choice was not open.
    return tensor.is_floating_point() and bool((tensor.isnan() | (tensor == float("inf"))).any())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors(value)
