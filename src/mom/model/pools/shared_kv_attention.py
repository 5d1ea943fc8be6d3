"""Attention modules that share keys and values (Zhang et al. 2022, arXiv 2210.05144, section 3.2)."""

from __future__ import annotations

from typing import Any

from mom.model.options import ModelOptions
from mom.model.pools.attention import Attention
from mom.model.registry import register_pool


@register_pool("shared_kv_attention")
class SharedKVAttention(Attention):
    """Modules (norm_i, W_q_i, W_o_i) over one W_kv, as in Mixture of Attention Heads (Zhang et al. 2022).

    Every token has a key and a value, even one that skips: it runs no module, but later tokens see it. With
    ``qk_norm``, each module scales its queries; the shared keys are normalized without a scale.
    """

    in_plain_blocks = False

    def projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        return {"q": (options.d_model, options.d_model), "out": (options.d_model, options.d_model)}

    def shared_projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        return {"kv": (options.d_model, 2 * options.d_model)}

    def scales(self, options: ModelOptions) -> dict[str, int | None]:
        return {"q_norm_weight": options.d_model // options.num_heads if options.qk_norm else None}

    def run(self, pool: Any, x: Any, routing: Any, folded: Any, context: Any) -> Any:
        """Assemble q, attend once over the keys and values of all tokens, and assemble the output."""
        import torch

        from mom.model.components import normalized_heads

        options, rows = pool.config, pool.rows(x, routing, folded, sorts=pool.config.qk_norm)
        key, value = pool.kv(rows.normal).view(*x.shape[:2], -1).chunk(2, dim=-1)  # (B, T, D) each
        if options.qk_norm:
            scale = pool.q_norm_weight[rows.module.clamp(max=pool.num_modules - 1)]  # (M, D / heads)
            queries = normalized_heads(rows.project_in(), scale, options.layer_norm_epsilon)
            query = rows.sum(queries, options.weight_qkv)  # (tokens, D)
            key = normalized_heads(key, torch.ones_like(scale[0]), options.layer_norm_epsilon)
        else:
            query = rows.sum_projected_in(weighted=options.weight_qkv)  # (tokens, D)
        qkv = torch.cat([query.view_as(x).to(key.dtype), key, value], dim=-1)  # (B, T, 3D)
        mixed = context.attend(qkv, torch.ones_like(routing.took_module))  # (B, T, D)
        return rows.sum_projected_out_of_tokens(mixed.flatten(0, 1)).view_as(x)
