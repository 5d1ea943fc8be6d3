"""The pools: a finite set of attention or feed-forward modules, their parameters stacked along the first axis.

A module carries its own LayerNorm. All modules of a pool normalise the same input, so the normalisation is done
once and each module's scale and shift are folded into its first projection: W LN(x) = (W · scale) x̂ + W shift.
Folding costs one pass over the weights per forward, where applying it would cost one per module and token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mom.model.configuration import MoMConfig
from mom.model.dispatch import grouped_linear, sort_by_group
from mom.model.routing import Routing


class Folded(NamedTuple):
    """A pool's weights, LayerNorms folded in and cast for the products; used by all rounds of one forward.

    Attributes:
        in_weight: [N, D, D_in].
        in_bias: [N, D_in].
        out_weight: [N, D_out, D].
        out_bias: [N, D].
    """

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


class Pool(nn.Module):
    """N modules of one kind, stacked.

    Args:
        config: the model's configuration.
        num_modules: modules N.
        first: name and output width of the first projection.
        second: name and input width of the projection back into the residual stream.
    """

    VECTORS: ClassVar[frozenset[str]]

    def __init__(
        self, config: MoMConfig, num_modules: int, first: tuple[str, int], second: tuple[str, int]
    ) -> None:
        super().__init__()
        self.config = config
        self.num_modules = num_modules
        width = config.d_model
        self._first, self._second = first[0], second[0]
        self.norm_weight = nn.Parameter(torch.ones(num_modules, width))
        self.norm_bias = nn.Parameter(torch.zeros(num_modules, width))
        for name, rows, columns in ((first[0], width, first[1]), (second[0], second[1], width)):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.empty(num_modules, rows, columns)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(num_modules, columns)))

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
            constant(getattr(self, f"{name}_bias"), 0.0)

    def fold(self) -> Folded:
        """Fold the LayerNorms and cast to the dtype that products run in."""
        weight, bias = getattr(self, f"{self._first}_weight"), getattr(self, f"{self._first}_bias")
        folded_bias = bias + torch.bmm(self.norm_bias[:, None], weight).squeeze(1)  # (N, D_in)
        folded = (
            weight * self.norm_weight[:, :, None],  # (N, D, D_in)
            folded_bias,
            getattr(self, f"{self._second}_weight"),
            getattr(self, f"{self._second}_bias"),
        )
        dtype = product_dtype(weight)
        return Folded(*(tensor.to(dtype) for tensor in folded))

    def normalize(self, x: Tensor) -> Tensor:
        """LayerNorm without scale and shift, flattened over tokens: [B, T, D] → [tokens, D]."""
        normal = F.layer_norm(x, x.shape[-1:], eps=self.config.layer_norm_epsilon)
        return normal.flatten(0, 1).to(product_dtype(x))


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype matrix products run in: autocast's where it is on, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class AttentionPool(Pool):
    """Attention modules: (LN_i, W_qkv_i, W_o_i), biases everywhere.

    Parameters: ``norm_weight norm_bias`` [N, D], ``qkv_weight`` [N, D, 3D], ``qkv_bias`` [N, 3D],
    ``out_weight`` [N, D, D], ``out_bias`` [N, D].
    """

    VECTORS = frozenset({"norm_weight", "norm_bias", "qkv_bias", "out_bias"})

    def __init__(self, config: MoMConfig) -> None:
        width = config.d_model
        super().__init__(config, config.num_attention_modules, ("qkv", 3 * width), ("out", width))

    def forward(
        self, x: Tensor, routing: Routing, folded: Folded, attend: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """One attention step: assemble q, k, v, attend once, assemble the output (DESIGN §1, step 2).

        Args:
            x: residual stream, [B, T, D].
            routing: who runs for whom.
            folded: this pool's :meth:`fold`.
            attend: ``attend(qkv, active)`` with the assembled [B, T, 3D] and whether a token took any module,
                boolean [B, T]; returns [B, T, D].

        Returns:
            What the step adds to the residual stream, [B, T, D].
        """
        batch, length, width = x.shape
        dispatch = sort_by_group(routing.selected.flatten(0, 1), self.num_modules)
        row_weight = routing.weights.flatten().index_select(0, dispatch.place)  # (M,)
        qkv = grouped_linear(
            self.normalize(x),
            folded.in_weight,
            folded.in_bias,
            dispatch,
            gather=True,
            scatter=True,
            row_weight=row_weight if self.config.weight_qkv else None,
        )  # (tokens, 3D)
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


class FFNPool(Pool):
    """Feed-forward modules: (LN_i, W_fc_i, W_proj_i) with tanh-GELU, biases everywhere.

    Parameters: ``norm_weight norm_bias`` [N, D], ``fc_weight`` [N, D, F], ``fc_bias`` [N, F],
    ``proj_weight`` [N, F, D], ``proj_bias`` [N, D].
    """

    VECTORS = frozenset({"norm_weight", "norm_bias", "fc_bias", "proj_bias"})

    def __init__(self, config: MoMConfig) -> None:
        super().__init__(config, config.num_ffn_modules, ("fc", config.ffn_width), ("proj", config.ffn_width))

    def forward(self, x: Tensor, routing: Routing, folded: Folded) -> Tensor:
        """One feed-forward step (DESIGN §1, step 3).

        Args:
            x: residual stream, [B, T, D].
            routing: who runs for whom.
            folded: this pool's :meth:`fold`.

        Returns:
            What the step adds to the residual stream, [B, T, D].
        """
        dispatch = sort_by_group(routing.selected.flatten(0, 1), self.num_modules)
        row_weight = routing.weights.flatten().index_select(0, dispatch.place)  # (M,)
        hidden = grouped_linear(
            self.normalize(x), folded.in_weight, folded.in_bias, dispatch, gather=True, scatter=False
        )  # (M, F)
        out = grouped_linear(
            hidden,
            folded.out_weight,
            folded.out_bias,
            dispatch,
            gather=False,
            scatter=True,
            row_weight=row_weight,
            gelu=True,
        )
        return out.view_as(x)
