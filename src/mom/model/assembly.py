"""The assembly: rounds in which every token chooses modules and runs them (paper, section 3).

A stage holds pools of modules, by default one of attention and one of feed-forward modules, and a router for each. In
each of H rounds, pool by pool, the router chooses modules for every token, and these are assembled into the layer that
the token passes through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mom.model.attention import AttentionContext, StepContext
from mom.model.blocks import Block
from mom.model.choices import Forced
from mom.model.configuration import MoMConfig
from mom.model.layout import PoolLayout
from mom.model.pools.pool import Pool
from mom.model.pools.rows import Folded
from mom.model.routers.router import Router
from mom.model.routing import RoundRouting, Routing, leave, round_type


class RoundState(NamedTuple):
    """The values that pass from round to round of a stage.

    Attributes:
        x: residual stream, [B, T, D].
        routers: each router's state, [B, T, state], or ``None``.
        exited: tokens that have exited the stage (``absorbing_skip``), boolean [B, T]; ``None`` if there are none.
    """

    x: Tensor
    routers: tuple[Tensor | None, ...]
    exited: Tensor | None = None


class RoutedPool(nn.Module):
    """A pool of a stage and its router."""

    def __init__(self, config: MoMConfig, layout: PoolLayout, stage_index: int) -> None:
        super().__init__()
        self.layout = layout
        self.router = Router(config, layout, salt=stage_index * len(config.pools()) + layout.position)
        self.pool = Pool(config, layout)
        self.cache_layers = config.cache_layers(stage_index, layout)
        # Bound here, because PEFT replaces the pool by a wrapper that can only be called.
        self._run = self.pool.run

    def fold(self, num_tokens: int) -> Folded:
        """Prepare the pool's weights for all rounds of one forward pass."""
        return self.pool(num_tokens * self.router.top_k * len(self.cache_layers))

    def forward(self, x: Tensor, routing: Routing, folded: Folded, context: StepContext) -> Tensor:
        """Run the chosen modules and return the update of the residual stream, [B, T, D]."""
        return self._run(x, routing, folded, context)


class Stage(nn.Module):
    """H rounds of assembly over the stage's pools, followed by a plain anchor block if the model has anchors."""

    def __init__(self, config: MoMConfig, index: int) -> None:
        super().__init__()
        self.layouts = config.pools()
        self.num_rounds = config.num_rounds
        self.absorbing_skip = config.absorbing_skip
        self.skip_exploration = config.skip_exploration
        for layout in self.layouts:
            self.add_module(layout.name, RoutedPool(config, layout, index))
        self.dropout = nn.Dropout(config.dropout)
        self.anchor = Block(config) if config.anchors else None
        self.anchor_layer = config.anchor_layer(index)
        self._record = round_type(tuple(layout.name for layout in self.layouts))
        self._assemble: Callable = self.assemble

    @property
    def pools(self) -> list[RoutedPool]:
        """The pools with their routers, in the order of a round."""
        return [cast(RoutedPool, self.get_submodule(layout.name)) for layout in self.layouts]

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        token_ids: Tensor | None,
        embedded: Tensor,
        run: Callable,
        keep: Callable[[Tensor], object],
        forced: Forced,
    ) -> tuple[Tensor, list[RoundRouting]]:
        """Run all rounds and the anchor.

        Args:
            x: residual stream, [B, T, D].
            context: access to the rest of the sequence, shared by all attentions of this forward pass.
            token_ids: [B, T], for routers that need them.
            embedded: token embeddings without positions, [B, T, D], likewise.
            run: ``run(function, *arguments)`` calls the function; it may checkpoint activations.
            keep: called with the residual stream after each round and after the anchor.
            forced: the stage's forced choices.

        Returns:
            The residual stream, [B, T, D], and the routing of each round.
        """
        folded = [pool.fold(x.shape[0] * x.shape[1]) for pool in self.pools]
        explored = None
        if self.training and any(pool.router.explores for pool in self.pools):
            explored = torch.rand(len(x), device=x.device) < self.skip_exploration  # (B,)
        state = RoundState(x, (None,) * len(self.pools))
        rounds = []
        for h in range(self.num_rounds):
            steps = [context.step(pool.cache_layers[h]) for pool in self.pools]
            state, decisions = run(
                partial(self._assemble, h, token_ids, embedded, steps, forced[h], explored), state, *folded
            )
            rounds.append(decisions)
            keep(state.x)
        x = state.x
        if self.anchor is not None:
            x = run(self.anchor, x, context, self.anchor_layer)
            keep(x)
        return x, rounds

    def assemble(
        self,
        h: int,
        token_ids: Tensor | None,
        embedded: Tensor,
        steps: list[StepContext],
        forced: tuple[Tensor | None, ...],
        explored: Tensor | None,
        state: RoundState,
        *folded: Folded,
    ) -> tuple[RoundState, RoundRouting]:
        """Run round h: pool by pool, the router reads the un-normalized stream, and its choice updates the stream."""
        x, router_states, exited = state  # (B, T, D)
        decisions, next_states = [], []
        for pool, router_state, weights, step, choices in zip(
            self.pools, router_states, folded, steps, forced, strict=True
        ):
            present = [
                tokens for tokens in (step.real, None if exited is None else ~exited) if tokens is not None
            ]
            candidates = reduce(torch.logical_and, present) if present else None  # (B, T)
            routing, router_state = pool.router(
                x, router_state, h, token_ids, choices, candidates, explored, embedded
            )
            if self.absorbing_skip:
                routing = routing if exited is None else leave(routing, exited)
                exited = ~routing.took_module  # (B, T)
            x = x + self.dropout(pool(x, routing, weights, step))  # (B, T, D)
            decisions.append(routing)
            next_states.append(router_state)
        return RoundState(x, tuple(next_states), exited), self._record(*decisions)

    def compile_rounds(self, **options: Any) -> None:
        """Compile the round that all rounds share; see :meth:`mom.model.MoMModel.compile_layers`."""
        self._assemble = torch.compile(self.assemble, **options)
