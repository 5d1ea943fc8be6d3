"""A router that reads each token's embedding beside the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mom.model.declaration import option
from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions
from mom.model.registry import register_router
from mom.model.routers.kind import RouterKind


@register_router("embedding")
class Embedding(RouterKind):
    """A linear layer on the stream, plus one on the token's embedding whose rows differ from round to round.

    At first, the rows of the embedding decide, so each round takes a module per token ID as if by a hash, which is a
    strong start for a mixture of experts (Roller et al. 2021, arXiv 2106.04426). The choice is learned from there, and
    the linear layer on the stream lets it depend on context. A router that reads the embedding drifts less
    (StableMoE, Dai et al. 2022, arXiv 2204.08396).
    """

    embedding_scale: float = option(
        3.0, "standard deviation of the initial logits that the token's embedding gives", group="router", gt=0
    )

    def layers(self, options: ModelOptions, layout: PoolLayout) -> dict[str, Any]:
        from torch import nn

        layers = {"output": nn.Linear(options.d_model, layout.num_slots)}
        if layout.has_choice():
            layers["rows"] = nn.Linear(options.d_model, layout.num_rounds * layout.num_modules, bias=False)
        return layers

    def reset(self, router: Any, copy: Callable[[Any, Any], object]) -> None:
        import torch

        if router.layout.has_choice():
            weight = router.rows.weight  # (H · N, D)
            copy(weight, torch.randn(weight.shape) * self.embedding_scale / weight.shape[1] ** 0.5)

    def start(self, router: Any, embedded: Any) -> Any:
        """Return what the embedding adds to the logits of all rounds, [B, T, D] → [B, T, H · slots].

        In each round, it leaves the probability of SKIP as it is, for the stream alone to decide. It sends no gradient
        into the embedding.
        """
        import torch
        import torch.nn.functional as F

        if not router.layout.has_choice():
            return None
        layout, reachable = router.layout, router.reachable[:, : router.layout.num_modules]  # (H, N)
        logits = router.rows(F.rms_norm(embedded.detach(), embedded.shape[-1:], eps=1e-8))
        logits = logits.unflatten(-1, reachable.shape)  # (B, T, H, N)
        # Not -inf, which is NaN after the subtraction where no module is left.
        least = torch.finfo(logits.dtype).min
        among = logits.masked_fill(~reachable, least).logsumexp(dim=-1, keepdim=True)  # (B, T, H, 1)
        even = reachable.sum(dim=-1, keepdim=True).clamp_min(1).log()  # (H, 1)
        logits = (logits - among + even).masked_fill(~reachable, 0.0)
        return F.pad(logits, (0, layout.num_skip_slots)).flatten(-2)

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        logits = router.output(x)  # (B, T, slots)
        if state is not None:
            first = round_index * router.layout.num_slots
            logits = logits + state[..., first : first + router.layout.num_slots]
        return logits, state

    def state_size(self, options: ModelOptions, layout: PoolLayout) -> int:
        return layout.num_rounds * layout.num_slots if layout.has_choice() else 0

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        rows = layout.num_modules if layout.has_choice() else 0
        return 2 * options.d_model * (layout.num_slots + rows)
