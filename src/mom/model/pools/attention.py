"""Attention modules."""

from __future__ import annotations

from typing import Any

from mom.model.options import ModelOptions
from mom.model.pools.kind import PoolKind
from mom.model.registry import register_pool


@register_pool("attention")
class Attention(PoolKind):
    """Modules (norm_i, W_qkv_i, W_o_i), and with ``qk_norm`` the scales of the norms of queries and keys."""

    label = "attention"
    in_plain_blocks = True
    attends = True

    def projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        width = options.d_model
        return {"qkv": (width, 3 * width), "out": (width, width)}

    def scales(self, options: ModelOptions) -> dict[str, int | None]:
        length = options.d_model // options.num_heads if options.qk_norm else None
        return {"q_norm_weight": length, "k_norm_weight": length}

    def flops_per_key(self, options: ModelOptions) -> int:
        """Count a score and a weighted sum, over all heads."""
        return 2 * 2 * options.d_model

    def cached_numbers(self, options: ModelOptions) -> int:
        return 2 * options.d_model

    def run(self, pool: Any, x: Any, routing: Any, folded: Any, context: Any) -> Any:
        """Assemble q, k, and v, attend once, and assemble the output (paper, section 3.1)."""
        options, rows = pool.config, pool.rows(x, routing, folded, sorts=pool.config.qk_norm)
        if options.qk_norm:  # queries and keys are normalized module by module, before they are summed
            qkv = rows.sum(self._normalized(pool, rows.project_in(), rows.module), options.weight_qkv)
        else:
            qkv = rows.sum_projected_in(weighted=options.weight_qkv)  # (tokens, 3D)
        mixed = context.attend(qkv.view(*x.shape[:2], -1), routing.took_module)  # (B, T, D)
        return rows.sum_projected_out_of_tokens(mixed.flatten(0, 1)).view_as(x)

    def _normalized(self, pool: Any, qkv: Any, module: Any) -> Any:
        """Normalize q and k of each row by its module's scales, [M, 3D]; rows of SKIP stay 0."""
        from mom.model.components import normalized_qk

        module = module.clamp(max=pool.num_modules - 1)  # (M,)
        q_scale, k_scale = pool.q_norm_weight[module].to(qkv.dtype), pool.k_norm_weight[module].to(qkv.dtype)
        return normalized_qk(qkv, q_scale, k_scale, pool.config.layer_norm_epsilon).to(qkv.dtype)
