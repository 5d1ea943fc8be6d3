"""The rows of computation of a step: a row for each module that a token runs.

:class:`SortedRows` sorts them by module. With very few tokens, as in decoding with a cache, even sorting costs more
than the matmuls. Then :class:`AllRows` runs every module for every token and sums them with a table of weights, which
are 0 for modules that were not chosen, in a single matmul. For one token on the CPU, :class:`SingleRows` reads which
modules it chose and runs these alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mom.model.components import activated
from mom.model.dispatch import FEW_NUMBERS, grouped_linear, reads_no_values, sort_by_group, sum_choices
from mom.model.options import ModelOptions
from mom.model.routing import Routing


class Folded(NamedTuple):
    """A pool's weights, cast to the dtype of the matmuls, for all rounds of a forward pass.

    Attributes:
        in_weight: [N, D, D_in].
        in_bias: [N, D_in].
        out_weight: [N, D_out, D].
        out_bias: [N, D].
        norm_weight: the norms' scales, [N, D]; ``None`` if they are folded into ``in_weight``.
        norm_bias: the norms' shifts, [N, D]; ``None`` if they are folded into ``in_bias``.
    """

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


class SortedRows:
    """A row for every token and choice, sorted by module; see :mod:`mom.model.dispatch`.

    Attributes:
        token: the token of each row, int64 [M].
        module: the module of each row, int64 [M]; N is SKIP.
        weight: the weight of each row, [M].
        normal: the part of the norm that all modules share, [tokens, D].
    """

    def __init__(self, config: ModelOptions, normal: Tensor, routing: Routing, folded: Folded) -> None:
        self._config, self.normal, self._folded = config, normal, folded
        self._dispatch = sort_by_group(routing.selected.flatten(0, 1), routing.num_modules)
        self.token, self.module = self._dispatch.token, self._dispatch.group
        self.weight = routing.weights.flatten().index_select(0, self._dispatch.position)  # (M,)

    def project_in(self) -> Tensor:
        """Apply norm and first projection to every row, [M, columns]; rows of SKIP are 0."""
        return self._project_in(scatter=False)

    def sum_projected_in(self, *, weighted: bool) -> Tensor:
        """Apply norm and first projection, and sum each token's rows, optionally by weight, [tokens, columns]."""
        return self._project_in(scatter=True, row_weight=self.weight if weighted else None)

    def _project_in(self, **how: Any) -> Tensor:
        folded, normal = self._folded, self.normal  # (tokens, D)
        if folded.norm_weight is not None and folded.norm_bias is not None:
            rows = normal.index_select(0, self.token)  # (M, D)
            module = self.module.clamp(max=len(folded.norm_weight) - 1)
            # A single operation, which rounds once like LayerNorm itself and gives the same bits.
            normal = torch.addcmul(folded.norm_bias[module], rows, folded.norm_weight[module])
        normal, gather = normal.to(folded.in_weight.dtype), folded.norm_weight is None
        return grouped_linear(normal, folded.in_weight, folded.in_bias, self._dispatch, gather=gather, **how)

    def sum(self, rows: Tensor, weighted: bool) -> Tensor:
        """Sum each token's rows, optionally by weight, [M, columns] → [tokens, columns]."""
        rows = rows * self.weight.to(rows.dtype)[:, None] if weighted else rows
        return sum_choices(rows, self._dispatch.row)

    def sum_projected_out(self, rows: Tensor, *, activate: bool = False) -> Tensor:
        """Apply the last projection and sum each token's rows by weight, [M, rows] → [tokens, D].

        ``activate`` applies the feed-forward's activation first. The backward pass computes GELU again, but for so few
        rows that time counts more than memory.
        """
        gelu = activate and not self._config.components.gated and rows.numel() > FEW_NUMBERS
        if activate and not gelu:
            rows = activated(self._config, rows)  # (M, F) or (M, 2F) → (M, F); rows of SKIP stay 0
        return self._project_out(rows, gather=False, gelu=gelu)

    def sum_projected_out_of_tokens(self, x: Tensor) -> Tensor:
        """Apply the last projection to inputs that a token's rows share, and sum, [tokens, rows] → [tokens, D]."""
        return self._project_out(x, gather=True)

    def _project_out(self, x: Tensor, **how: Any) -> Tensor:
        weight, bias = self._folded.out_weight, self._folded.out_bias
        return grouped_linear(x, weight, bias, self._dispatch, scatter=True, row_weight=self.weight, **how)


class AllRows:
    """Every module for every token; the methods are those of :class:`SortedRows`, with rows [N, tokens, columns]."""

    def __init__(self, config: ModelOptions, normal: Tensor, routing: Routing, folded: Folded) -> None:
        self._config, self.normal, self._folded, self._routing = config, normal, folded, routing
        normal = normal.to(folded.in_weight.dtype)[:, None]  # (tokens, 1, D)
        if folded.norm_weight is not None and folded.norm_bias is not None:
            normal = torch.addcmul(folded.norm_bias, normal, folded.norm_weight)  # (tokens, N, D)
        self._normal = normal
        self._weights = self._table(routing.weights)

    def _table(self, values: Tensor) -> Tensor:
        values = values.to(self._normal.dtype)
        return choice_table(self._routing.selected, values, self._routing.num_modules)

    def project_in(self) -> Tensor:
        folded, by_module = self._folded, self._normal.transpose(0, 1)  # (N or 1, tokens, D)
        by_module = by_module.expand(self._routing.num_modules, -1, -1)
        return torch.baddbmm(folded.in_bias[:, None], by_module, folded.in_weight)

    def sum_projected_in(self, *, weighted: bool) -> Tensor:
        table = self._weights if weighted else self._table(torch.ones_like(self._routing.weights))
        return sum_modules(self._normal, table, self._folded.in_weight, self._folded.in_bias)

    def sum_projected_out(self, rows: Tensor, *, activate: bool = False) -> Tensor:
        rows = activated(self._config, rows) if activate else rows
        return self._project_out(rows.transpose(0, 1))  # (tokens, N, columns)

    def sum_projected_out_of_tokens(self, x: Tensor) -> Tensor:
        return self._project_out(x[:, None])  # (tokens, 1, D)

    def _project_out(self, rows: Tensor) -> Tensor:
        return sum_modules(rows, self._weights, self._folded.out_weight, self._folded.out_bias)


class SingleRows:
    """The modules of one token, one by one; the methods are those of :class:`SortedRows`, with rows [K, columns]."""

    def __init__(self, config: ModelOptions, normal: Tensor, routing: Routing, folded: Folded) -> None:
        self._config, self.normal, self._folded = config, normal, folded
        self._modules: list[int] = routing.selected.flatten().tolist()
        self._num_modules = routing.num_modules
        self._weight = routing.weights.view(-1, 1)  # (K, 1)

    def project_in(self) -> Tensor:
        folded = self._folded
        rows = [
            self._scaled(module) if module < self._num_modules else self.normal for module in self._modules
        ]
        return self._project(rows, folded.in_weight, folded.in_bias)

    def _scaled(self, module: int) -> Tensor:
        """Apply the part of a module's norm that is not folded into its first projection, [1, D]."""
        if self._folded.norm_weight is None or self._folded.norm_bias is None:
            return self.normal
        return torch.addcmul(self._folded.norm_bias[module], self.normal, self._folded.norm_weight[module])

    def sum_projected_in(self, *, weighted: bool) -> Tensor:
        return self._sum(self.project_in(), weighted)

    def sum_projected_out(self, rows: Tensor, *, activate: bool = False) -> Tensor:
        rows = activated(self._config, rows) if activate else rows
        return self._project_out(rows.split(1))

    def sum_projected_out_of_tokens(self, x: Tensor) -> Tensor:
        return self._project_out([x] * len(self._modules))

    def _project_out(self, rows: Sequence[Tensor]) -> Tensor:
        return self._sum(self._project(rows, self._folded.out_weight, self._folded.out_bias), weighted=True)

    def _project(self, rows: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        """Apply each row's module to it, [1, D_in] each → [K, D_out]; rows of SKIP are 0."""
        products = [
            torch.addmm(bias[module], row.to(weight.dtype), weight[module])
            if module < self._num_modules
            else weight.new_zeros(1, weight.shape[-1])
            for module, row in zip(self._modules, rows, strict=True)
        ]
        return products[0] if len(products) == 1 else torch.cat(products)

    def _sum(self, rows: Tensor, weighted: bool) -> Tensor:
        rows = rows * self._weight.to(rows.dtype) if weighted else rows
        return rows if len(rows) == 1 else rows.sum(dim=0, keepdim=True)


ALL_MODULES_MAX_TOKENS = 32
ALL_MODULES_MAX_WEIGHTS = 2**19


def should_run_one_by_one(normal: Tensor) -> bool:
    """Return whether to run the modules of a token, [1, D], one by one; for decoding, so only without gradients.

    Reading which modules these are would make a GPU wait, and cannot be compiled.
    """
    reads = normal.device.type == "cpu" and not torch.compiler.is_compiling() and not reads_no_values()
    return len(normal) == 1 and reads and not torch.is_grad_enabled()


def should_run_all_modules(num_tokens: int, num_weights: int) -> bool:
    """Return whether to run every module for every token instead of sorting tokens by module.

    This is for decoding, so only without gradients. The wasted computation must cost less than sorting, so tokens
    (B x T) and weights (of the first projection, all modules together) must be few; the bounds are measured
    (docs/performance.md, "Decoding").
    """
    few = num_tokens <= ALL_MODULES_MAX_TOKENS and num_weights <= ALL_MODULES_MAX_WEIGHTS
    return few and not torch.is_grad_enabled()


def choice_table(selected: Tensor, values: Tensor, num_modules: int) -> Tensor:
    """Scatter the values of the K choices, [B, T, K], to a table of modules, [tokens, N], 0 for modules not chosen."""
    table = values.new_zeros(selected.shape[0] * selected.shape[1], num_modules + 1)
    table.scatter_(1, selected.flatten(0, 1), values.flatten(0, 1))
    return table[:, :num_modules]


def sum_modules(rows: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply every module's linear map to every token, and sum by a table of weights, in a single matmul.

    Args:
        rows: each token's rows, [tokens, N, D_in]; [tokens, 1, D_in] if the modules share a row.
        table: :func:`choice_table`, [tokens, N].
        weight: [N, D_in, D_out].
        bias: [N, D_out].

    Returns:
        [tokens, D_out].
    """
    weighted = (rows * table[:, :, None]).flatten(1)  # (tokens, N · D_in)
    return torch.addmm(table @ bias, weighted, weight.flatten(0, 1))
