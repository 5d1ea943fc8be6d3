"""The assembly: rounds in which every token chooses modules and runs them (paper, section 3; DESIGN §1).

One stage holds one pool of attention modules, one pool of feed-forward modules, and a router for each. For H
rounds, token by token, the routers choose; what they choose is the layer that the token passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mom.model.attention import AttentionContext
from mom.model.blocks import Block
from mom.model.configuration import MoMConfig
from mom.model.pools import AttentionPool, FFNPool, Folded
from mom.model.routers import build_router
from mom.model.routing import RoundRouting, Routing, leave
from mom.model.schedules import PoolLayout


class RoundState(NamedTuple):
    """What passes from round to round of a stage.

    Attributes:
        x: residual stream, [B, T, D].
        attention: the attention router's state, [B, T, router_dim], or ``None``.
        ffn: the feed-forward router's state, likewise.
        gone: tokens that have left the stage (``absorbing_skip``), boolean [B, T]; ``None`` at first and without.
    """

    x: Tensor
    attention: Tensor | None
    ffn: Tensor | None
    gone: Tensor | None = None


class RoutedAttention(nn.Module):
    """The attention pool of a stage and its router."""

    def __init__(self, config: MoMConfig, stage_index: int) -> None:
        super().__init__()
        self.router = build_router(config, PoolLayout.attention(config), salt=2 * stage_index)
        self.pool = AttentionPool(config)
        self.num_modules = self.pool.num_modules
        # Bound here, as PEFT puts a wrapper in the pool's place that can only be called.
        self._run = self.pool.run

    def forward(
        self, x: Tensor, routing: Routing, folded: Folded, attend: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """One attention step: :meth:`AttentionPool.run`."""
        return self._run(x, routing, folded, attend)


class RoutedFFN(nn.Module):
    """The feed-forward pool of a stage and its router."""

    def __init__(self, config: MoMConfig, stage_index: int) -> None:
        super().__init__()
        self.router = build_router(config, PoolLayout.ffn(config), salt=2 * stage_index + 1)
        self.pool = FFNPool(config)
        self.num_modules = self.pool.num_modules
        self._run = self.pool.run

    def forward(self, x: Tensor, routing: Routing, folded: Folded) -> Tensor:
        """One feed-forward step: :meth:`FFNPool.run`."""
        return self._run(x, routing, folded)


class Stage(nn.Module):
    """H rounds of assembly over this stage's own pools, then one plain anchor block if the model has anchors.

    Args:
        config: the model's configuration.
        stage_index: the stage's place.
    """

    def __init__(self, config: MoMConfig, stage_index: int) -> None:
        super().__init__()
        self.num_rounds = config.num_rounds
        self.absorbing_skip = config.absorbing_skip
        self.attention = RoutedAttention(config, stage_index)
        self.ffn = RoutedFFN(config, stage_index)
        self.dropout = nn.Dropout(config.dropout)
        self.anchor = Block(config) if config.anchors else None
        self._run_round: Callable = self.assemble

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        first_layer: int,
        token_ids: Tensor | None,
        run: Callable,
        keep: bool,
    ) -> tuple[Tensor, list[RoundRouting], list[Tensor]]:
        """Assemble and pass the anchor.

        Args:
            x: residual stream, [B, T, D].
            context: what every attention of this forward shares.
            first_layer: cache layer of the first round; round h uses ``first_layer + h``, the anchor the next.
            token_ids: [B, T], for the router that needs them.
            run: ``run(function, *arguments)``; activation checkpointing enters here, once per round.
            keep: return the residual stream after each round and anchor.

        Returns:
            The residual stream, the routing of each round, and the residual streams in between, if kept.
        """
        num_rows = x.shape[0] * x.shape[1] * self.num_rounds
        folded = tuple(part.pool(num_rows * part.router.top_k) for part in (self.attention, self.ffn))
        draws = self.attention.router.draw_dropped(x), self.ffn.router.draw_dropped(x)
        state = RoundState(x, None, None)
        routing, passed = [], []
        for round_index in range(self.num_rounds):
            one_round = partial(
                self._run_round, round_index, context, first_layer + round_index, token_ids, draws
            )
            state, decided = run(one_round, state, *folded)
            routing.append(decided)
            passed += [state.x] if keep else []
        x = state.x
        if self.anchor is not None:
            x = run(self.anchor, x, context, first_layer + self.num_rounds)
            passed += [x] if keep else []
        return x, routing, passed

    def compile_rounds(self, **options: Any) -> None:
        """`torch.compile` one round for all rounds; see :meth:`mom.model.MoMModel.compile_layers`."""
        self._run_round = torch.compile(self.assemble, **options)

    def assemble(
        self,
        round_index: int,
        context: AttentionContext,
        layer_index: int,
        token_ids: Tensor | None,
        draws: tuple[Tensor | None, Tensor | None],
        state: RoundState,
        folded_attention: Folded,
        folded_ffn: Folded,
    ) -> tuple[RoundState, RoundRouting]:
        """One round: the attention router chooses and its modules run, then the same for the feed-forward."""
        x = state.x  # (B, T, D); the routers read it un-normalised

        attention, attention_state = self.attention.router(
            x, state.attention, round_index, token_ids, draws[0]
        )
        attention, gone = self._absorb(attention, state.gone, self.attention.num_modules)
        attend = partial(context.attend, layer_index=layer_index)
        x = x + self.dropout(
            self.attention(x, attention, folded_attention, lambda qkv, active: attend(qkv, active=active))
        )

        ffn, ffn_state = self.ffn.router(x, state.ffn, round_index, token_ids, draws[1])
        ffn, gone = self._absorb(ffn, gone, self.ffn.num_modules)
        x = x + self.dropout(self.ffn(x, ffn, folded_ffn))

        return RoundState(x, attention_state, ffn_state, gone), RoundRouting(attention, ffn)

    def _absorb(
        self, routing: Routing, gone: Tensor | None, num_modules: int
    ) -> tuple[Routing, Tensor | None]:
        """With ``absorbing_skip``: SKIP for the tokens that have left, and who has left after this step."""
        if not self.absorbing_skip:
            return routing, None
        if gone is not None:
            routing = leave(routing, gone, num_modules)
        return routing, (routing.selected == num_modules).all(dim=-1)  # (B, T); who had left has again
