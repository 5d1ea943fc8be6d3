"""Keys and values of earlier tokens, kept in memory that grows ahead of need."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE_TOKENS = 64
"""Room that is made beyond what is needed, at least."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that appends in place.

    Its parent joins old and new at each token, which copies everything that was cached: over n tokens work that grows
    with n². This one keeps spare room behind the cached tokens, half as much again whenever it runs out, and hands out
    views. Whatever else its parent does (reordering for beam search, cropping, repeating) makes ``keys`` and ``values``
    something else than the view handed out last; then the next update starts a new buffer from them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: dict[str, tuple[Tensor, Tensor]] = {}  # name → (buffer, the view of it handed out last)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, D / heads] keys and values and return all of them."""
        if key_states.requires_grad:  # writing in place would break the gradient
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = keys = self._append("keys", self.keys, key_states)
        self.values = values = self._append("values", self.values, value_states)
        return keys, values

    def _append(self, name: str, cached: Tensor | None, new: Tensor) -> Tensor:
        assert cached is not None
        length = cached.shape[-2] if cached.numel() else 0
        total = length + new.shape[-2]
        buffer, handed_out = self._room.get(name, (cached, None))
        if cached is not handed_out or total > buffer.shape[-2]:
            room = total + max(SPARE_TOKENS, total // 2)
            buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])  # (B, heads, room, D / heads)
            if length:
                buffer[..., :length, :] = cached
        buffer[..., length:total, :] = new
        view = buffer[..., :total, :]
        self._room[name] = (buffer, view)
        return view


def prepare(cache: Cache, num_layers: int) -> None:
    """Give a cache all its layers, and let plain growing ones that hold nothing yet append in place."""
    missing = num_layers - len(cache.layers)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer
        for layer in [*cache.layers, *(DynamicLayer() for _ in range(missing))]
    ]
