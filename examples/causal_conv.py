"""A custom module kind: causal depthwise convolutions as a third pool.

Name this module in ``plugins`` (or import it) and choose it with ``model.pools=[attention, causal_conv, ffn]``. A token
sees the ``kernel_size`` - 1 tokens before it, during decoding from the cache; padding counts as zeros.
"""

from typing import Any

import torch
import torch.nn.functional as F

from mom.model.options import ModelOptions, option
from mom.model.pools import PoolKind
from mom.model.registry import register_pool


@register_pool("causal_conv")
class CausalConv(PoolKind):
    """Modules (norm_i, depthwise kernel_i, W_out_i): the kernel slides over time, with one filter per channel."""

    label = "convolution"
    streams = True
    folds = False

    kernel_size: int = option(4, "tokens that a convolution sees", ge=1)

    def projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        return {"kernel": (self.kernel_size, options.d_model), "out": (options.d_model, options.d_model)}

    def cached_numbers(self, options: ModelOptions) -> int:
        return options.d_model + 1

    def run(self, pool: Any, x: Any, routing: Any, folded: Any, context: Any) -> Any:
        rows = pool.rows(x, routing, folded, sorts=True)
        # Append ones that become 0 for missing tokens, so that a norm's shift applies to real tokens only.
        signal = F.pad(pool.normalized(x), (0, 1), value=1.0)  # (B, T, D + 1)
        if context.real is not None:
            signal = signal * context.real[..., None]
        past = context.with_past(signal, self.kernel_size - 1)  # (B, kernel_size - 1 + T, D + 1)
        windows = past.unfold(1, self.kernel_size, 1).flatten(0, 1)  # (tokens, D + 1, kernel_size)
        window = windows[rows.token].mT.to(folded.in_weight.dtype)  # (M, kernel_size, D + 1)
        module = rows.module.clamp(max=pool.num_modules - 1)  # (M,)
        scale, shift = folded.norm_weight[module, None], folded.norm_bias[module, None]  # (M, 1, D)
        normal = window[..., :-1] * scale + window[..., -1:] * shift  # (M, kernel_size, D)
        mixed = (normal * folded.in_weight[module]).sum(1) + folded.in_bias[module]  # (M, D)
        return rows.sum_projected_out(torch.nn.functional.silu(mixed)).view_as(x)
