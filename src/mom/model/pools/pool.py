"""The host of a pool: the weights of N modules of one kind, stacked along the first axis.

Each module has its own norm. All modules of a pool normalize the same input, so the normalization is computed once and
each module's scale and shift are folded into its first projection: W LN(x) = (W · scale) x̂ + W shift. RMSNorm has no
shift. Folding costs a pass over the weights per forward pass, applying the norms costs one per token and module; with
few tokens, applying is cheaper (:func:`worth_folding`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mom.model.components import normalized
from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.pools.rows import (
    AllRows,
    Folded,
    SingleRows,
    SortedRows,
    should_run_all_modules,
    should_run_one_by_one,
)
from mom.model.routing import Routing
from mom.model.weight_gradients import with_summed_gradients


class Pool(nn.Module):
    """The stacked weights of N modules of a kind; :class:`mom.model.pools.PoolKind` lists them.

    A weight that the configuration omits (biases with ``block: llama``) is ``None``.
    """

    norm_weight: nn.Parameter
    norm_bias: nn.Parameter | None

    def __init__(self, config: ModelOptions, layout: PoolLayout) -> None:
        super().__init__()
        self.config, self.layout, self.kind = config, layout, layout.kind
        self.num_modules = layout.num_modules
        parts, projections = config.components, self.kind.projections(config)
        self._first, self._last = projections
        self._add("norm_weight", config.d_model, 1.0)
        self._add("norm_bias", None if parts.rms_norm else config.d_model, 0.0)
        for name, (rows, columns) in projections.items():
            weight = nn.Parameter(torch.empty(self.num_modules, rows, columns))
            self.register_parameter(f"{name}_weight", weight)
            self._add(f"{name}_bias", columns if parts.bias else None, 0.0)
        for name, length in self.kind.scales(config).items():
            self._add(name, length, 1.0)
        matrices = {f"{name}_weight" for name in projections}
        for name, (rows, columns) in self.kind.shared_projections(config).items():
            self.add_module(name, nn.Linear(rows, columns, bias=parts.bias))
        # Stacked vectors: AdamW does not decay them, although they have two dimensions.
        self.VECTORS = frozenset(
            name for name, _ in self.named_parameters(recurse=False) if name not in matrices
        )

    def _add(self, name: str, length: int | None, value: float) -> None:
        """Register a vector per module, [N, length]."""
        vector = None if length is None else nn.Parameter(torch.full((self.num_modules, length), value))
        self.register_parameter(name, vector)

    def reset_parameters(
        self, normal: Callable[..., object], constant: Callable[[Tensor, float], object]
    ) -> None:
        """Initialize as GPT-2 does, with the last projection scaled by the depth of the graph.

        Args:
            normal: ``normal(tensor, mean, std)`` fills a tensor with random numbers.
            constant: ``constant(tensor, value)`` fills a tensor with a value.
        """
        std = self.config.initializer_range
        normal(getattr(self, f"{self._first}_weight"), 0.0, std)
        normal(getattr(self, f"{self._last}_weight"), 0.0, std / math.sqrt(2 * self.config.graph_depth))
        for name in self.VECTORS:
            constant(getattr(self, name), 0.0 if name.endswith("_bias") else 1.0)

    def forward(self, num_rows: int) -> Folded:
        """Cast the weights to the dtype of the matmuls, and fold in the norms if that is cheaper.

        Only this call reads the projections, so that PEFT's changes to them (LoRA) apply everywhere.

        Args:
            num_rows: rows of computation that will use the weights, tokens x K x rounds.
        """
        weight, bias = getattr(self, f"{self._first}_weight"), self._bias(self._first)
        out = getattr(self, f"{self._last}_weight"), self._bias(self._last)
        if self.kind.folds and worth_folding(num_rows, weight.shape[0] * weight.shape[2]):
            if self.norm_bias is not None:
                bias = bias + torch.bmm(self.norm_bias[:, None], weight).squeeze(1)  # (N, D_in)
            tensors: tuple[Tensor, ...] = (weight * self.norm_weight[:, :, None], bias, *out)
        else:
            shift = torch.zeros_like(self.norm_weight) if self.norm_bias is None else self.norm_bias
            tensors = (weight, bias, *out, self.norm_weight, shift)
        dtype = product_dtype(weight)
        weight, bias, out_weight, out_bias, *norms = (tensor.to(dtype) for tensor in tensors)
        first, last = with_summed_gradients(weight, bias), with_summed_gradients(out_weight, out_bias)
        return Folded(*first, *last, *norms)

    def _bias(self, name: str) -> Tensor:
        """Return a projection's biases, [N, columns], zeros if it has none."""
        bias, weight = getattr(self, f"{name}_bias"), getattr(self, f"{name}_weight")
        return weight.new_zeros(weight.shape[0], weight.shape[2]) if bias is None else bias

    def run(self, x: Tensor, routing: Routing, folded: Folded, context: Any) -> Tensor:
        """Run one step; see :meth:`mom.model.pools.PoolKind.run`."""
        return self.kind.run(self, x, routing, folded, context)

    def normalized(self, x: Tensor) -> Tensor:
        """Return the part of the norm that all modules share, [B, T, D] → [B, T, D]."""
        return normalized(self.config, x)

    def rows(
        self, x: Tensor, routing: Routing, folded: Folded, *, sorts: bool = False
    ) -> SortedRows | AllRows | SingleRows:
        """Return the rows of computation of a step on x, [B, T, D], in the cheapest form.

        ``sorts`` always sorts the rows by module.
        """
        normal = self.normalized(x).flatten(0, 1)  # (tokens, D)
        if not sorts and should_run_one_by_one(normal):
            return SingleRows(self.config, normal, routing, folded)
        if not sorts and should_run_all_modules(len(normal), folded.in_weight.numel()):
            return AllRows(self.config, normal, routing, folded)
        return SortedRows(self.config, normal, routing, folded)


def worth_folding(num_rows: int, num_columns: int) -> bool:
    """Return whether scaling weights, N x D_in columns of length D, is cheaper than scaling ``num_rows`` rows."""
    return num_rows >= num_columns


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that matmuls run in: autocast's if it is on, else the tensor's own."""
    device = tensor.device.type
    is_on = not tensor.is_meta and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else tensor.dtype
