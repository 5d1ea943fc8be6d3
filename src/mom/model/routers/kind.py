"""The base class of router kinds: options, layers, scores, and cost."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from mom.model.declaration import option
from mom.model.layout import PoolLayout
from mom.model.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class RouterKind:
    """A way to choose modules, registered with :func:`mom.model.registry.register_router`.

    A kind holds no weights: :meth:`layers` builds them for the host, :class:`mom.model.routers.router.Router`, which
    applies reachability, temperature, prior, noise, and balance bias to the result of :meth:`score` and ranks it. A
    kind's options are fields declared with :func:`mom.model.declaration.option`. Import PyTorch inside methods to keep
    the options readable without it.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = True
    """Whether scores depend on weights; if not, temperature, prior, noise, and balance bias do not apply."""
    needs_choices: ClassVar[bool] = False
    """Whether the caller must choose (:mod:`mom.model.choices`)."""

    def layers(self, options: ModelOptions, layout: PoolLayout) -> dict[str, Any]:
        """Return a router's layers (PyTorch modules) by name; they become attributes of the host."""
        return {}

    def reset(self, router: Any, copy: Callable[[Any, Any], object]) -> None:
        """Initialize layers by ``copy(destination, source)``; by default, linear layers start as those of GPT-2."""

    def start(self, router: Any, embedded: Any) -> Any:
        """Return the state before a stage's first round; ``None`` by default.

        Precision is as for :meth:`score`.

        Args:
            router: the host.
            embedded: token embeddings without positions, [B, T, D].

        Returns:
            The state, [B, T, state], or ``None``.
        """
        return None

    def score(self, router: Any, x: Any, state: Any, round_index: int, token_ids: Any) -> tuple[Any, ...]:
        """Score every slot in a round.

        Autocast is off, and x, the state, and the weights of the layers are float32, whatever the precision of the
        model.

        Args:
            router: the host, which has the layers as attributes.
            x: un-normalized residual stream, [B, T, D].
            state: the router's state after the previous round, [B, T, state]; at first what :meth:`start` returned.
            round_index: the round within the stage.
            token_ids: [B, T].

        Returns:
            Outputs [B, T, slots] and the new state; an optional third item, [B, T, slots], is ranked instead of the
            scores.
        """
        raise NotImplementedError

    def output_bias(self, router: Any) -> Any:
        """Return the bias of the outputs, [slots], whose SKIP starts at ``skip_bias``; ``None`` if there is none."""
        return getattr(getattr(router, "output", None), "bias", None)

    def state_size(self, options: ModelOptions, layout: PoolLayout) -> int:
        """Return the size of a token's state."""
        return 0

    def num_parameters(self, options: ModelOptions, layout: PoolLayout) -> int:
        """Return the number of parameters of a router's layers."""
        return sum(weight.numel() for weight in self._weights(options, layout))

    def flops(self, options: ModelOptions, layout: PoolLayout) -> int:
        """Return the FLOPs of a router per token and round; by default a matmul per weight matrix."""
        return 2 * sum(weight.numel() for weight in self._weights(options, layout) if weight.ndim > 1)

    def _weights(self, options: ModelOptions, layout: PoolLayout) -> list[Any]:
        """Return the parameters of a router's layers on the meta device."""
        import torch

        with torch.device("meta"):
            layers = self.layers(options, layout).values()
        return [weight for layer in layers for weight in layer.parameters()]

    def open_slots(self, router: Any, round_index: int) -> Any:
        """Return which slots a round may choose, boolean [slots]; ``None`` means all."""
        return None if router.all_reachable else router.reachable[round_index]

    def may_skip(self, layout: PoolLayout) -> bool:
        """Return whether the router can choose SKIP if the pool has it."""
        return True

    def can_spare(self, modules: Collection[int]) -> bool:
        """Return whether these modules can be removed if each round keeps enough choices."""
        return True

    def most_choices(self, layout: PoolLayout) -> int:
        """Return the largest K that every round can fill."""
        return min(sum(row) for row in layout.reachable())

    def most_modules(self, layout: PoolLayout) -> float:
        """Return the maximum number of modules that a token runs in a step, averaged over rounds."""
        rounds, top_k = layout.num_rounds, layout.num_selected()
        return sum(min(top_k, len(layout.modules_of(h))) for h in range(rounds)) / rounds


def _half_of_d_model(options: ModelOptions) -> int:
    return max(1, min(256, options.d_model // 2))


@dataclass(frozen=True, kw_only=True)
class HiddenRouterKind(RouterKind):
    """A router with a hidden layer."""

    router_dim: int | None = option(
        None,
        "width of the router's hidden layer or state; null: the paper's 256, or half of d_model if less",
        group="router",
        ge=1,
    )

    def width(self, options: ModelOptions) -> int:
        """Return ``router_dim`` as a number."""
        return _half_of_d_model(options) if self.router_dim is None else self.router_dim
