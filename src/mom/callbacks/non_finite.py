"""Detect divergence: prevent optimizer steps with a non-finite gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mom.callbacks.ranks import gather
from mom.callbacks.window import StepCallback, skipped_in_a_row
from mom.errors import RunFailed

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20


class NonFiniteError(RunFailed):
    """Raised when training diverges; the message names the step, ranks and modules."""


class NonFinite(StepCallback):
    """Stops or skips an optimizer step if its gradient is not finite.

    A non-finite loss on one rank makes the averaged gradient non-finite on all of them, so all ranks reach the same
    decision without communication. To find the ranks and modules at fault, the step's micro-batches are run through the
    model again. Each step costs one norm and one transfer to the host. With ``precision: 16-mixed``, overflow is
    expected and handled by the loss scaler, so nothing is checked.

    A skipped step changes no weight, balance bias, prior, or optimizer state. It still counts as a step: the learning
    rate, schedules, and ``max_steps`` follow the number of steps.

    Args:
        action: ``stop`` raises, with weights and checkpoints as they were before the step; ``skip`` skips the step and
            continues, but raises after 20 skipped steps in a row.

    Raises:
        NonFiniteError: on every rank.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"action must be stop or skip, got {action}")
        self._action = action
        self._micro_batches: list[Any] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the micro-batch until its optimizer step."""
        super().on_train_batch_start(trainer, pl_module)
        self._micro_batches.append(batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Discard the micro-batches of a completed step."""
        if self.step_has_ended(trainer):
            self._micro_batches.clear()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop or skip if the gradient is not finite."""
        if trainer.precision == "16-mixed":
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if bool(norm.isfinite()):
            return
        skipped = skipped_in_a_row(pl_module) + 1
        found = f"step {trainer.global_step + 1}: {self._diagnosis(trainer, pl_module)}"
        if self._action == "stop":
            raise NonFiniteError(
                f"{found}; stopped before the optimizer step (trainer.on_nonfinite=skip skips such steps)"
            )
        if skipped >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{found}; {MAX_SKIPPED_IN_A_ROW} steps in a row were skipped")
        if trainer.is_global_zero:
            log.warning("%s; skipping the step", found)
        for parameter in pl_module.parameters():
            parameter.grad = None  # the optimizer ignores parameters without a gradient

    def _diagnosis(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Describe where a non-finite loss first appeared on each rank, or else a non-finite gradient."""
        found = None
        # A sharded model runs only on all ranks together, which is not worth the effort here.
        if not any(isinstance(parameter, DTensor) for parameter in pl_module.parameters()):
            # Forked, so that the following steps draw the same random numbers as without this check.
            devices = [pl_module.device] if pl_module.device.type == "cuda" else []
            with (
                torch.random.fork_rng(devices),
                torch.no_grad(),
                trainer.precision_plugin.forward_context(),
            ):
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
        if not any(gather(bool(names))):
            largest, name = max(
                (float(_local(parameter.grad).abs().max()), name)
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None and _local(parameter.grad).numel()
            )
            return f"the norm of the gradient overflows, with values up to {largest:.0e} at {name}"
        # The backward pass runs from the end of the model to its start, so the last name was reached first.
        nearest = names[-1] if names else "another rank"
        return f"the gradient is not finite, starting at {nearest}"


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_non_finite(pl_module: Any, batch: Any) -> str | None:
    """Return the innermost module that first outputs NaN or infinity on this batch; ``None`` if none does."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(_is_non_finite(tensor) for tensor in _tensors(output)):
                found.append(f"first in the output of {name}")

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in pl_module.named_modules() if name]
    try:
        pl_module.run_model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_non_finite(tensor: Tensor) -> bool:
    # Router records have minus infinity for unreachable choices.
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
