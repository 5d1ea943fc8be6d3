"""Feed-forward modules."""

from __future__ import annotations

from typing import Any

from mom.model.declaration import option
from mom.model.options import ModelOptions
from mom.model.pools.kind import PoolKind
from mom.model.registry import register_pool


@register_pool("ffn")
class FFN(PoolKind):
    """Modules (norm_i, W_fc_i, W_proj_i) with tanh-GELU, or SwiGLU with gate and value in W_fc_i."""

    label = "FFN"
    in_plain_blocks = True

    d_ffn: int | None = option(None, "hidden width of a module; null: that of a plain block", ge=1)

    def hidden_width(self, options: ModelOptions) -> int:
        """Return the hidden width of a module."""
        return options.ffn_width if self.d_ffn is None else self.d_ffn

    def projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        width, hidden = options.d_model, self.hidden_width(options)
        return {"fc": (width, 2 * hidden if options.components.gated else hidden), "proj": (hidden, width)}

    def run(self, pool: Any, x: Any, routing: Any, folded: Any, context: Any) -> Any:
        """Run each token's modules and sum their outputs by weight (paper, section 3.1)."""
        rows = pool.rows(x, routing, folded)
        return rows.sum_projected_out(rows.project_in(), activate=True).view_as(x)
