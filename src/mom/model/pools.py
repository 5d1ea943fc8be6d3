"""The pools: a finite set of attention or feed-forward modules, their parameters stacked along the first axis.

A module carries its own LayerNorm. All modules of a pool normalise the same input, so the normalisation is done
once and each module's scale and shift are folded into its first projection: W LN(x) = (W · scale) x̂ + W shift.
RMSNorm is the same without a shift.
Folding costs one pass over the weights per forward, where applying it would cost one per module and token; with few
tokens it is the other way round, and they are applied (:func:`worth_folding`).

With very few tokens, as in decoding with a cache, even sorting them costs more than the products. Then every module
runs for every token, and a table of weights, 0 where a module was not chosen, sums them in one product
(:func:`all_modules_are_cheaper`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mom.model.components import activated, normalized, normalized_qk
from mom.model.configuration import MoMConfig
from mom.model.dispatch import Dispatch, grouped_linear, sort_by_group, sum_choices
from mom.model.routing import Routing


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
    """N modules of one kind, stacked.

    Args:
        config: the model's configuration.
        num_modules: modules N.
        first: name and output width of the first projection.
        second: name and input width of the projection back into the residual stream.
    """

    VECTORS: ClassVar[frozenset[str]]

    norm_bias: nn.Parameter | None

    def __init__(
        self, config: MoMConfig, num_modules: int, first: tuple[str, int], second: tuple[str, int]
    ) -> None:
        super().__init__()
        self.config = config
        self.num_modules = num_modules
        width = config.d_model
        self._first, self._second = first[0], second[0]
        self.norm_weight = nn.Parameter(torch.ones(num_modules, width))
        parts = config.components
        shift = None if parts.rms_norm else nn.Parameter(torch.zeros(num_modules, width))
        self.register_parameter("norm_bias", shift)
        for name, rows, columns in ((first[0], width, first[1]), (second[0], second[1], width)):
            bias = nn.Parameter(torch.zeros(num_modules, columns)) if parts.bias else None
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.empty(num_modules, rows, columns)))
            self.register_parameter(f"{name}_bias", bias)

    def reset_parameters(
        self, normal: Callable[..., object], constant: Callable[[Tensor, float], object]
    ) -> None:
        """Initialise as GPT-2 does, the second projection scaled by the graph's depth.

        Args:
            normal: ``normal(tensor, mean, std)``, the initialiser's way to fill a tensor.
            constant: ``constant(tensor, value)``.
        """
        std = self.config.initializer_range
        constant(self.norm_weight, 1.0)
        normal(getattr(self, f"{self._first}_weight"), 0.0, std)
        normal(getattr(self, f"{self._second}_weight"), 0.0, std / math.sqrt(2 * self.config.graph_depth))
        for name in ("norm", self._first, self._second):
            bias = getattr(self, f"{name}_bias")
            if bias is not None:
                constant(bias, 0.0)

    def forward(self, num_rows: int) -> Folded:
        """Cast the weights to the dtype that products run in, and fold the LayerNorms in where that is cheaper.

        Nothing but this call reads the parameters, so that what PEFT adds to them (LoRA) counts everywhere.

        Args:
            num_rows: rows of computation, tokens x K x rounds, that will use them.
        """
        weight, bias = getattr(self, f"{self._first}_weight"), self._bias(self._first)
        out = getattr(self, f"{self._second}_weight"), self._bias(self._second)
        if worth_folding(num_rows, weight.shape[0] * weight.shape[2]):
            if self.norm_bias is not None:
                bias = bias + torch.bmm(self.norm_bias[:, None], weight).squeeze(1)  # (N, D_in)
            tensors: tuple[Tensor, ...] = (weight * self.norm_weight[:, :, None], bias, *out)
        else:
            shift = torch.zeros_like(self.norm_weight) if self.norm_bias is None else self.norm_bias
            tensors = (weight, bias, *out, self.norm_weight, shift)
        dtype = product_dtype(weight)
        return Folded(*(tensor.to(dtype) for tensor in tensors))

    def _bias(self, name: str) -> Tensor:
        """A projection's biases, [N, D_out]; zeros where it has none, which the dispatch adds all the same."""
        bias, weight = getattr(self, f"{name}_bias"), getattr(self, f"{name}_weight")
        return weight.new_zeros(weight.shape[0], weight.shape[2]) if bias is None else bias

    def project_in(
        self,
        x: Tensor,
        folded: Folded,
        dispatch: Dispatch,
        *,
        scatter: bool,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """Every chosen module's LayerNorm and first projection.

        Args:
            x: residual stream, [B, T, D].
            folded: what calling this pool gave.
            dispatch: rows sorted by module.
            scatter: sum over a token's choices.
            row_weight: [M]; ``None`` means 1.

        Returns:
            [tokens, D_in] if ``scatter``, else [M, D_in] in dispatch order.
        """
        normal = self._normalized(x)  # (tokens, D)
        if folded.norm_weight is not None and folded.norm_bias is not None:
            rows = normal.index_select(0, dispatch.token)  # (M, D)
            module = dispatch.group.clamp(max=self.num_modules - 1)
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

    def _normalized(self, x: Tensor) -> Tensor:
        """What all LayerNorms of the pool share, [B, T, D] → [tokens, D]."""
        return normalized(self.config, x).flatten(0, 1)

    def _rows_of_all(self, x: Tensor, folded: Folded) -> Tensor:
        """The input of each module's first projection for each token, [B, T, D] → [tokens, N or 1, D]."""
        normal = self._normalized(x).to(folded.in_weight.dtype)[:, None]  # (tokens, 1, D)
        if folded.norm_weight is None or folded.norm_bias is None:
            return normal
        return torch.addcmul(folded.norm_bias, normal, folded.norm_weight)  # (tokens, N, D)


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


class AttentionPool(Pool):
    """Attention modules: (norm_i, W_qkv_i, W_o_i).

    Parameters: ``norm_weight norm_bias`` [N, D], ``qkv_weight`` [N, D, 3D], ``qkv_bias`` [N, 3D],
    ``out_weight`` [N, D, D], ``out_bias`` [N, D]; with ``qk_norm`` ``q_norm_weight k_norm_weight`` [N, D / heads].
    Those that ``config.block`` has not are ``None``.
    """

    VECTORS = frozenset(
        {"norm_weight", "norm_bias", "qkv_bias", "out_bias", "q_norm_weight", "k_norm_weight"}
    )

    q_norm_weight: nn.Parameter | None
    k_norm_weight: nn.Parameter | None

    def __init__(self, config: MoMConfig) -> None:
        width = config.d_model
        super().__init__(config, config.num_attention_modules, ("qkv", 3 * width), ("out", width))
        for name in ("q_norm_weight", "k_norm_weight"):
            scale = torch.ones(self.num_modules, width // config.num_heads)
            self.register_parameter(name, nn.Parameter(scale) if config.qk_norm else None)

    def reset_parameters(
        self, normal: Callable[..., object], constant: Callable[[Tensor, float], object]
    ) -> None:
        """As :meth:`Pool.reset_parameters`; the norms of queries and keys start at scale 1."""
        super().reset_parameters(normal, constant)
        for scale in (self.q_norm_weight, self.k_norm_weight):
            if scale is not None:
                constant(scale, 1.0)

    def run(
        self, x: Tensor, routing: Routing, folded: Folded, attend: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """One attention step: assemble q, k, v, attend once, assemble the output (DESIGN §1, step 2).

        Args:
            x: residual stream, [B, T, D].
            routing: who runs for whom.
            folded: what calling this pool gave.
            attend: ``attend(qkv, active)`` with the assembled [B, T, 3D] and whether a token took any module,
                boolean [B, T]; returns [B, T, D].

        Returns:
            What the step adds to the residual stream, [B, T, D].
        """
        batch, length, width = x.shape
        # Queries and keys are normalised module by module, before they are summed.
        sums_at_once = self.q_norm_weight is None
        if sums_at_once and all_modules_are_cheaper(batch * length, folded.in_weight.numel()):
            return self._run_all(x, routing, folded, attend)
        dispatch = sort_by_group(routing.selected.flatten(0, 1), self.num_modules)
        row_weight = routing.weights.flatten().index_select(0, dispatch.place)  # (M,)
        weight_in = row_weight if self.config.weight_qkv else None
        if sums_at_once:
            qkv = self.project_in(x, folded, dispatch, scatter=True, row_weight=weight_in)  # (tokens, 3D)
        else:
            qkv = self._sum_normalized(
                self.project_in(x, folded, dispatch, scatter=False), dispatch, weight_in
            )
        active = (routing.selected < self.num_modules).any(dim=-1)  # (B, T)
        mixed = attend(qkv.view(batch, length, 3 * width), active)
        out = grouped_linear(
            mixed.flatten(0, 1),
            folded.out_weight,
            folded.out_bias,
            dispatch,
            gather=True,
            scatter=True,
            row_weight=row_weight,
        )
        return out.view(batch, length, width)

    def _sum_normalized(self, rows: Tensor, dispatch: Dispatch, row_weight: Tensor | None) -> Tensor:
        """Each module's q and k normalised by its own scales, then summed, [M, 3D] → [tokens, 3D]; SKIP's stay 0."""
        assert self.q_norm_weight is not None and self.k_norm_weight is not None
        module = dispatch.group.clamp(max=self.num_modules - 1)  # (M,)
        query_scale = self.q_norm_weight[module].to(rows.dtype)  # (M, D / heads)
        key_scale = self.k_norm_weight[module].to(rows.dtype)
        rows = normalized_qk(rows, query_scale, key_scale, self.config.layer_norm_epsilon).to(rows.dtype)
        if row_weight is not None:
            rows = rows * row_weight.to(rows.dtype)[:, None]
        return sum_choices(rows, dispatch.row)

    def _run_all(
        self, x: Tensor, routing: Routing, folded: Folded, attend: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """:meth:`run` with every module run for every token."""
        batch, length, width = x.shape
        weights = routing.weights.to(folded.in_weight.dtype)  # (B, T, K)
        table = choice_table(routing.selected, weights, self.num_modules)  # (tokens, N)
        first = (
            table
            if self.config.weight_qkv
            else choice_table(routing.selected, torch.ones_like(weights), self.num_modules)
        )
        qkv = sum_modules(self._rows_of_all(x, folded), first, folded.in_weight, folded.in_bias)
        active = (routing.selected < self.num_modules).any(dim=-1)  # (B, T)
        mixed = attend(qkv.view(batch, length, 3 * width), active).view(batch * length, 1, width)
        return sum_modules(mixed, table, folded.out_weight, folded.out_bias).view_as(x)


class FFNPool(Pool):
    """Feed-forward modules: (norm_i, W_fc_i, W_proj_i) with tanh-GELU, or SwiGLU with gate and value in W_fc_i.

    Parameters: ``norm_weight norm_bias`` [N, D], ``fc_weight`` [N, D, F or 2F], ``fc_bias`` [N, F],
    ``proj_weight`` [N, F, D], ``proj_bias`` [N, D]. Those that ``config.block`` has not are ``None``.
    """

    VECTORS = frozenset({"norm_weight", "norm_bias", "fc_bias", "proj_bias"})

    def __init__(self, config: MoMConfig) -> None:
        hidden = config.ffn_width
        first = 2 * hidden if config.components.gated else hidden
        super().__init__(config, config.num_ffn_modules, ("fc", first), ("proj", hidden))

    def run(self, x: Tensor, routing: Routing, folded: Folded) -> Tensor:
        """One feed-forward step (DESIGN §1, step 3).

        Args:
            x: residual stream, [B, T, D].
            routing: who runs for whom.
            folded: what calling this pool gave.

        Returns:
            What the step adds to the residual stream, [B, T, D].
        """
        if all_modules_are_cheaper(x.shape[0] * x.shape[1], folded.in_weight.numel()):
            return self._run_all(x, routing, folded)
        dispatch = sort_by_group(routing.selected.flatten(0, 1), self.num_modules)
        row_weight = routing.weights.flatten().index_select(0, dispatch.place)  # (M,)
        hidden = self.project_in(x, folded, dispatch, scatter=False)  # (M, F)
        gated = self.config.components.gated
        if gated:
            hidden = activated(self.config, hidden)  # (M, 2F) → (M, F); rows of SKIP stay 0
        out = grouped_linear(
            hidden,
            folded.out_weight,
            folded.out_bias,
            dispatch,
            gather=False,
            scatter=True,
            row_weight=row_weight,
            gelu=not gated,
        )
        return out.view_as(x)

    def _run_all(self, x: Tensor, routing: Routing, folded: Folded) -> Tensor:
        """:meth:`run` with every module run for every token."""
        rows = self._rows_of_all(x, folded)  # (tokens, N or 1, D)
        by_module = rows.transpose(0, 1).expand(self.num_modules, -1, -1)  # (N, tokens, D)
        hidden = torch.baddbmm(folded.in_bias[:, None], by_module, folded.in_weight)  # (N, tokens, F)
        hidden = activated(self.config, hidden).transpose(0, 1)  # (tokens, N, F)
        table = choice_table(routing.selected, routing.weights.to(hidden.dtype), self.num_modules)
        return sum_modules(hidden, table, folded.out_weight, folded.out_bias).view_as(x)
