"""The mean over the targets of an optimizer step, whose micro-batches run one after the other and on several ranks."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import Parameter

from mom.callbacks.window import sum_over_ranks


class StepMean:
    """Weights that make the gradient of an optimizer step that of the mean over all of its targets.

    Lightning divides the loss of a micro-batch by ``accumulate_grad_batches`` and averages over ranks. That is wrong if
    an epoch ends within the step, or if micro-batches differ in their number of targets. So each loss is multiplied by
    its number of targets, in units of the first micro-batch to stay near 1, and the sum of gradients is corrected once,
    when the number of targets in the step is known.

    A step of one micro-batch on one rank has weight 1, and equal micro-batches are weighted by exactly 1.
    """

    def __init__(self) -> None:
        self._unit: Tensor | None = None
        self._total: Tensor | None = None

    def weight(self, trainer: Trainer, num_targets: Tensor | int, device: torch.device) -> Tensor | None:
        """Count a micro-batch, and return the weight of its loss, a scalar; ``None`` if it is alone in its step.

        Args:
            trainer: every rank has to call it.
            num_targets: targets of the micro-batch on this rank.
            device: where to count.
        """
        if trainer.accumulate_grad_batches == 1 and trainer.world_size == 1:
            return None
        targets = torch.as_tensor(num_targets, device=device).float()
        if self._unit is None or self._total is None:
            self._unit = (sum_over_ranks(trainer, targets.clone()) / trainer.world_size).clamp_min(1)
            self._total = torch.zeros_like(targets)
        self._total = self._total + targets
        return targets / self._unit

    def correct(self, trainer: Trainer, parameters: list[Parameter]) -> None:
        """Divide the gradients of a complete step, in place, by what was really in it; start the next step."""
        unit, total = self._unit, self._total
        self._unit = self._total = None
        if unit is None or total is None:
            return
        divided_by = trainer.world_size * trainer.accumulate_grad_batches
        targets = sum_over_ranks(trainer, total).clamp_min(1)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:  # even if the factor is 1, because reading it would make a GPU wait
            torch._foreach_mul_(gradients, divided_by * unit / targets)
