"""The host of a pool: the weights of N modules of one kind, stacked along the first axis, and the two ways to run them.

A module carries its own norm. All modules of a pool normalize the same input, so the normalization is computed once and
each module's scale and shift are folded into its first projection: W LN(x) = (W · scale) x̂ + W shift. RMSNorm is the
same without a shift. Folding costs one pass over the weights per forward pass, applying them one per module and token;
with few tokens applying is cheaper (:func:`worth_folding`).

With very few tokens, as in decoding with a cache, even sorting them costs more than the matmuls. Then every module
runs for every token, and a table of weights, 0 where a module was not chosen, sums them in one matmul
(:func:`all_modules_are_cheaper`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mom.model.components import activated, normalized
from mom.model.configuration import MoMConfig
from mom.model.dispatch import grouped_linear, sort_by_group, sum_choices
from mom.model.routing import Routing
from mom.model.schedules import PoolLayout


class Folded(NamedTuple):
    """A pool's weights, cast for the products; used by all rounds of one forward.

    Attributes:
        in_weight: [N, D, D_in].
        in_bias: [N, D_in].
        out_weight: [N, D_out, D].
        out_bias: [N, D].
        norm_weight: the LayerNorms' scales, [N, D]; ``None`` if they are folded into ``in_weight``.
        norm_bias: the LayerNorms' shifts, [N, D]; ``None`` if they are folded into ``in_bias``.
    """

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


class Pool(nn.Module):
    """N modules of one kind, stacked: the weights that :class:`mom.model.pools.PoolKind` states.

    A weight that the configuration leaves out (biases with ``block: llama``) is ``None``.

    Args:
        config: the model's configuration.
        layout: the pool.
    """

    norm_weight: nn.Parameter
    norm_bias: nn.Parameter | None

    def __init__(self, config: MoMConfig, layout: PoolLayout) -> None:
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
        # Vectors of N modules: AdamW does not decay them, though they have two dimensions.
        self.VECTORS = frozenset(name for name, _ in self.named_parameters() if name not in matrices)

    def _add(self, name: str, length: int | None, value: float) -> None:
        """Register a vector of each module, [N, length]."""
        vector = None if length is None else nn.Parameter(torch.full((self.num_modules, length), value))
        self.register_parameter(name, vector)

    def reset_parameters(
        self, normal: Callable[..., object], constant: Callable[[Tensor, float], object]
    ) -> None:
        """Initialize as GPT-2 does, the last projection scaled by the depth of the graph.

        Args:
            normal: ``normal(tensor, mean, std)`` fills a tensor with random numbers.
            constant: ``constant(tensor, value)`` fills one with a value.
        """
        std = self.config.initializer_range
        normal(getattr(self, f"{self._first}_weight"), 0.0, std)
        normal(getattr(self, f"{self._last}_weight"), 0.0, std / math.sqrt(2 * self.config.graph_depth))
        for name in self.VECTORS:
            constant(getattr(self, name), 0.0 if name.endswith("_bias") else 1.0)

    def forward(self, num_rows: int) -> Folded:
        """Cast the weights to the dtype of the matmuls, and fold the norms in where that is cheaper.

        Nothing but this call reads the projections, so that what PEFT adds to them (LoRA) counts everywhere.

        Args:
            num_rows: rows of computation, tokens x K x rounds, that will use them.
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
        return Folded(*(tensor.to(dtype) for tensor in tensors))

    def _bias(self, name: str) -> Tensor:
        """Return a projection's biases, [N, columns]; zeros if it has none, which the dispatch adds all the same."""
        bias, weight = getattr(self, f"{name}_bias"), getattr(self, f"{name}_weight")
        return weight.new_zeros(weight.shape[0], weight.shape[2]) if bias is None else bias

    def run(self, x: Tensor, routing: Routing, folded: Folded, context: Any) -> Tensor:
        """Run one step; see :meth:`mom.model.pools.PoolKind.run`."""
        return self.kind.run(self, x, routing, folded, context)

    def normalized(self, x: Tensor) -> Tensor:
        """Return what all norms of the pool share, [B, T, D] → [B, T, D]."""
        return normalized(self.config, x)

    def rows(
        self, x: Tensor, routing: Routing, folded: Folded, *, sorts: bool = False
    ) -> SortedRows | AllRows:
        """Return the rows of computation of one step, in the cheaper of two ways.

        Args:
            x: residual stream, [B, T, D].
            routing: the modules and weights of each token.
            folded: what calling this pool returned.
            sorts: sort the rows by module in any case.
        """
        if not sorts and all_modules_are_cheaper(x.shape[0] * x.shape[1], folded.in_weight.numel()):
            return AllRows(self, x, routing, folded)
        return SortedRows(self, x, routing, folded)


class SortedRows:
    """A row for every token and choice, sorted by module; see :mod:`mom.model.dispatch`.

    Attributes:
        token: the token of each row, int64 [M].
        module: the module of each row, int64 [M]; N is SKIP.
        weight: the weight of each row, [M].
    """

    def __init__(self, pool: Pool, x: Tensor, routing: Routing, folded: Folded) -> None:
        self._pool, self._folded, self._x = pool, folded, x
        self._dispatch = dispatch = sort_by_group(routing.selected.flatten(0, 1), pool.num_modules)
        self.token, self.module = dispatch.token, dispatch.group
        self.weight = routing.weights.flatten().index_select(0, dispatch.place)  # (M,)

    def project_in(self) -> Tensor:
        """Return every row's norm and first projection, [M, columns]; rows of SKIP are 0."""
        return self._project_in(scatter=False)

    def sum_projected_in(self, *, weighted: bool) -> Tensor:
        """Return the same summed over each token's rows, by weight or plainly, [tokens, columns]."""
        return self._project_in(scatter=True, row_weight=self.weight if weighted else None)

    def _project_in(self, *, scatter: bool, row_weight: Tensor | None = None) -> Tensor:
        folded, dispatch = self._folded, self._dispatch
        normal = self._pool.normalized(self._x).flatten(0, 1)  # (tokens, D)
        if folded.norm_weight is not None and folded.norm_bias is not None:
            rows = normal.index_select(0, dispatch.token)  # (M, D)
            module = dispatch.group.clamp(max=self._pool.num_modules - 1)
            # As LayerNorm itself does it, in one step: rounded once, to the same bits.
            normal = torch.addcmul(folded.norm_bias[module], rows, folded.norm_weight[module])
        return grouped_linear(
            normal.to(folded.in_weight.dtype),
            folded.in_weight,
            folded.in_bias,
            dispatch,
            gather=folded.norm_weight is None,
            scatter=scatter,
            row_weight=row_weight,
        )

    def sum(self, rows: Tensor, weighted: bool) -> Tensor:
        """Sum each token's rows, by weight or plainly, [M, columns] → [tokens, columns]."""
        return sum_choices(
            rows * self.weight.to(rows.dtype)[:, None] if weighted else rows, self._dispatch.row
        )

    def sum_projected_out(self, rows: Tensor, *, activate: bool = False) -> Tensor:
        """Return the last projection of every row, summed by weight over each token's, [M, rows] → [tokens, D].

        Args:
            rows: the input of the last projection.
            activate: apply the feed-forward's activation to it first.
        """
        gelu = activate and not self._pool.config.components.gated
        if activate and not gelu:
            rows = activated(self._pool.config, rows)  # (M, 2F) → (M, F); rows of SKIP stay 0
        return self._project_out(rows, gather=False, gelu=gelu)

    def sum_projected_out_of_tokens(self, x: Tensor) -> Tensor:
        """Return the same for rows that share their token's input, [tokens, rows] → [tokens, D]."""
        return self._project_out(x, gather=True)

    def _project_out(self, x: Tensor, *, gather: bool, gelu: bool = False) -> Tensor:
        folded = self._folded
        return grouped_linear(
            x,
            folded.out_weight,
            folded.out_bias,
            self._dispatch,
            gather=gather,
            scatter=True,
            row_weight=self.weight,
            gelu=gelu,
        )


class AllRows:
    """Every module for every token; the methods are those of :class:`SortedRows`, with rows [N, tokens, columns]."""

    def __init__(self, pool: Pool, x: Tensor, routing: Routing, folded: Folded) -> None:
        self._pool, self._folded, self._routing = pool, folded, routing
        normal = pool.normalized(x).flatten(0, 1).to(folded.in_weight.dtype)[:, None]  # (tokens, 1, D)
        if folded.norm_weight is not None and folded.norm_bias is not None:
            normal = torch.addcmul(folded.norm_bias, normal, folded.norm_weight)  # (tokens, N, D)
        self._input = normal
        self._weights = self._table(routing.weights)

    def _table(self, values: Tensor) -> Tensor:
        return choice_table(
            self._routing.selected, values.to(self._folded.in_weight.dtype), self._pool.num_modules
        )

    def project_in(self) -> Tensor:
        by_module = self._input.transpose(0, 1).expand(self._pool.num_modules, -1, -1)  # (N, tokens, D)
        return torch.baddbmm(self._folded.in_bias[:, None], by_module, self._folded.in_weight)

    def sum_projected_in(self, *, weighted: bool) -> Tensor:
        table = self._weights if weighted else self._table(torch.ones_like(self._routing.weights))
        return sum_modules(self._input, table, self._folded.in_weight, self._folded.in_bias)

    def sum_projected_out(self, rows: Tensor, *, activate: bool = False) -> Tensor:
        rows = activated(self._pool.config, rows) if activate else rows
        return self._project_out(rows.transpose(0, 1))  # (tokens, N, columns)

    def sum_projected_out_of_tokens(self, x: Tensor) -> Tensor:
        return self._project_out(x[:, None])  # (tokens, 1, D)

    def _project_out(self, rows: Tensor) -> Tensor:
        return sum_modules(rows, self._weights, self._folded.out_weight, self._folded.out_bias)


def worth_folding(num_rows: int, num_columns: int) -> bool:
    """Whether to fold LayerNorms into the weights: [N, D, D_in] is scaled once, or ``num_rows`` rows of D are.

    Args:
        num_rows: rows that the LayerNorms would be applied to.
        num_columns: columns that they would be folded into, N x D_in.
    """
    return num_rows >= num_columns


def all_modules_are_cheaper(num_tokens: int, num_weights: int) -> bool:
    """Whether to run every module for every token instead of sorting tokens by module.

    Only without gradients: that is decoding. What is computed in vain must cost less than the sorting, so both the
    tokens and the weights must be few; the bounds are measured (docs/performance.md, "Decoding").

    Args:
        num_tokens: tokens of this forward, B x T.
        num_weights: entries of the pool's first projection, all modules together.
    """
    few = num_tokens <= ALL_MODULES_MAX_TOKENS and num_weights <= ALL_MODULES_MAX_WEIGHTS
    return few and not torch.is_grad_enabled()


ALL_MODULES_MAX_TOKENS = 32
ALL_MODULES_MAX_WEIGHTS = 2**19


def choice_table(selected: Tensor, values: Tensor, num_modules: int) -> Tensor:
    """Lay the values of the K choices out over the modules.

    Args:
        selected: [B, T, K]; ``num_modules`` or more is SKIP.
        values: [B, T, K].
        num_modules: modules N.

    Returns:
        [tokens, N], 0 where a module was not chosen.
    """
    table = values.new_zeros(selected.shape[0] * selected.shape[1], num_modules + 1)
    table.scatter_(1, selected.flatten(0, 1), values.flatten(0, 1))
    return table[:, :num_modules]


def sum_modules(rows: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every module's linear map of every token, summed with a table of weights, in one product.

    Args:
        rows: each token's rows, [tokens, N, D_in]; [tokens, 1, D_in] if the modules share one.
        table: :func:`choice_table`, [tokens, N].
        weight: [N, D_in, D_out].
        bias: [N, D_out].

    Returns:
        [tokens, D_out].
    """
    weighted = (rows * table[:, :, None]).flatten(1)  # (tokens, N · D_in)
    return torch.addmm(table @ bias, weighted, weight.flatten(0, 1))


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype matrix products run in: autocast's where it is on, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
