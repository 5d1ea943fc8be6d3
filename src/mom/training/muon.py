"""Muon for stacked matrices, with AdamW for the parameters that are not hidden matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import muon
from torch.optim.adam import adam

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EPS = 1e-7


class Muon(torch.optim.AdamW):
    """PyTorch's Muon for groups with ``muon: True``, its AdamW for all others, in a single optimizer.

    Muon orthogonalizes a matrix's update. ``torch.optim.Muon`` takes two-dimensional parameters only, [D_out, D_in] as
    in ``nn.Linear``; a pool stacks its N modules into [N, D_in, D_out]. Here each module's matrix is updated as if it
    were such a parameter; a module that got no token has a zero gradient and moves by its momentum.

    Args:
        params: parameter groups.
        lr: default learning rate.
        betas: of AdamW.
        eps: of AdamW.
        momentum: decay rate of the running mean of the gradient.
        nesterov: use Nesterov momentum.
        ns_steps: steps of the Newton–Schulz iteration.
        adjust_lr_fn: how the learning rate depends on the shape; see ``torch.optim.Muon``.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjust_lr_fn: str,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        options = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        for group in self.param_groups:
            if group.setdefault("muon", False):
                group.update(options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._step_muon if group["muon"] else self._step_adamw)(group)
        return loss

    def _step_muon(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        momenta: list[Tensor] = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW expects it when it loads a state
            state["step"] += 1
            parameters += matrices(parameter)
            gradients += matrices(parameter.grad)
            momenta += matrices(state["momentum_buffer"])
        muon(
            parameters,
            gradients,
            momenta,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=NS_COEFFICIENTS,
            ns_steps=group["ns_steps"],
            eps=NS_EPS,
            adjust_lr_fn=group["adjust_lr_fn"],
            has_complex=False,
        )

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        means: list[Tensor] = []
        squares: list[Tensor] = []
        largest: list[Tensor] = []
        steps: list[Tensor] = []
        has_complex = self._init_group(group, parameters, gradients, means, squares, largest, steps)
        adam(
            parameters,
            gradients,
            means,
            squares,
            largest,
            steps,
            has_complex=has_complex,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=True,
        )


def matrices(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the matrices of a parameter as views, [D_out, D_in] as ``nn.Linear`` has them.

    Args:
        tensor: a matrix [D_out, D_in], or those of N modules, [N, D_in, D_out].
    """
    if tensor.ndim == 2:
        yield tensor
    else:
        yield from (matrix.mT for matrix in tensor)
