"""The assembly: rounds in which every token chooses modules and runs them (paper, section 3).

A stage holds pools of modules, by default one of attention and one of feed-forward modules, and a router for each. For
H rounds, pool by pool, the routers choose for each token; the chosen modules are the layer that the token passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mom.model.attention import AttentionContext, StepContext
from mom.model.blocks import Block
from mom.model.configuration import MoMConfig
from mom.model.layout import PoolLayout
from mom.model.pools.pool import Pool
from mom.model.pools.rows import Folded
from mom.model.routers.router import Router
from mom.model.routing import RoundRouting, Routing, leave, round_type


class RoundState(NamedTuple):
    """What passes from round to round of a stage.

    Attributes:
        x: residual stream, [B, T, D].
        routers: each router's state, [B, T, state], or ``None``.
        exited: tokens that have exited the stage (``absorbing_skip``), boolean [B, T]; ``None`` if none can or yet.
    """

    x: Tensor
    routers: tuple[Tensor | None, ...]
    exited: Tensor | None = None


class RoutedPool(nn.Module):
    """A pool of a stage and its router.

    Args:
        config: the model's configuration.
        layout: the pool.
        stage_index: the stage's place.
    """

    def __init__(self, config: MoMConfig, layout: PoolLayout, stage_index: int) -> None:
        super().__init__()
        self.layout = layout
        self.router = Router(config, layout, salt=stage_index * len(config.pools()) + layout.position)
        self.pool = Pool(config, layout)
        self.cache_layers = [config.cache_layer(stage_index, h, layout) for h in range(config.num_rounds)]
        # Bound here, as PEFT puts a wrapper in the pool's place that can only be called.
        self._run = self.pool.run

    def forward(self, x: Tensor, routing: Routing, folded: Folded, context: StepContext) -> Tensor:
        """Run the chosen modules and return the update of the residual stream, [B, T, D]."""
        return self._run(x, routing, folded, context)


class Stage(nn.Module):
    """H rounds of assembly over this stage's own pools, then one plain anchor block if the model has anchors.

    Args:
        config: the model's configuration.
        index: the stage's place.
    """

    def __init__(self, config: MoMConfig, index: int) -> None:
        super().__init__()
        self.layouts = config.pools()
        self.num_rounds = config.num_rounds
        self.absorbing_skip = config.absorbing_skip
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
        return [self.get_submodule(layout.name) for layout in self.layouts]  # type: ignore[misc]

    def forward(
        self, x: Tensor, context: AttentionContext, token_ids: Tensor | None, run: Callable, keep: bool
    ) -> tuple[Tensor, list[RoundRouting], list[Tensor]]:
        """Run all rounds and the anchor.

        Args:
            x: residual stream, [B, T, D].
            context: what all attentions of this forward pass share.
            token_ids: [B, T], for routers that need them.
            run: ``run(function, *arguments)`` calls the function; it may checkpoint activations.
            keep: return the residual stream after each round and the anchor too.

        Returns:
            The residual stream, the routing of each round, and the residual streams that are kept.
        """
        num_rows = x.shape[0] * x.shape[1] * self.num_rounds
        folded = [one.pool(num_rows * one.router.top_k) for one in self.pools]
        state = RoundState(x, (None,) * len(self.pools))
        routing, passed = [], []
        for h in range(self.num_rounds):
            steps = [context.step(one.cache_layers[h]) for one in self.pools]
            state, decided = run(partial(self._assemble, h, token_ids, steps), state, *folded)
            routing.append(decided)
            passed += [state.x] if keep else []
        x = state.x
        if self.anchor is not None:
            x = run(self.anchor, x, context, self.anchor_layer)
            passed += [x] if keep else []
        return x, routing, passed

    def assemble(
        self,
        h: int,
        token_ids: Tensor | None,
        steps: list[StepContext],
        state: RoundState,
        *folded: Folded,
    ) -> tuple[RoundState, RoundRouting]:
        """Run round h: in each pool the router chooses from the un-normalized stream, and the modules update it."""
        x, states, exited = state  # (B, T, D)
        decided, after = [], []
        for one, router_state, weights, step in zip(self.pools, states, folded, steps, strict=True):
            routing, router_state = one.router(x, router_state, h, token_ids)
            if self.absorbing_skip:
                routing = routing if exited is None else leave(routing, exited)
                exited = ~routing.took_module  # (B, T); those that had exited have again
            x = x + self.dropout(one(x, routing, weights, step))
            decided.append(routing)
            after.append(router_state)
        return RoundState(x, tuple(after), exited), self._record(*decided)

    def compile_rounds(self, **options: Any) -> None:
        """`torch.compile` one round for all rounds; see :meth:`mom.model.MoMModel.compile_layers`."""
        self._assemble = torch.compile(self.assemble, **options)
