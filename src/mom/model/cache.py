"""A cache of keys and values that allocates memory ahead of need."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticLayer

SPARE_TOKENS = 64
"""Minimum number of tokens to allocate ahead."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that appends in place.

    Its parent concatenates old and new at each token, which copies the entire cache: quadratic work over a sequence.
    This class appends to a buffer, returns views of it, and grows it by half when it is full. Other operations of the
    parent (reordering for beam search, cropping, repeating) replace ``keys`` and ``values``; if these are not the views
    returned last, the next update copies them to a new buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, tuple[Tensor, Tensor]] = {}  # name → (buffer, its view returned last)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, D / heads] keys and values and return all of them."""
        if key_states.requires_grad:  # writing in place would break the gradients
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
        buffer, returned = self._buffers.get(name, (cached, None))
        if cached is not returned or total > buffer.shape[-2]:
            size = total + max(SPARE_TOKENS, total // 2)
            buffer = new.new_empty(*new.shape[:-2], size, new.shape[-1])  # (B, heads, size, D / heads)
            if length:
                buffer[..., :length, :] = cached
        buffer[..., length:total, :] = new
        view = buffer[..., :total, :]
        self._buffers[name] = (buffer, view)
        return view


def prepare(cache: Cache, num_layers: int, num_attentions: int) -> None:
    """Add missing layers to a cache, and replace empty dynamic layers by layers that append in place.

    Args:
        num_layers: layers that the model needs; transformers makes one per hidden layer.
        num_attentions: of these, the layers of attentions, which come first.

    Raises:
        ValueError: a cache of a fixed size, and a pool that streams, which needs the last tokens at the cache's end.
    """
    missing = num_layers - len(cache.layers)
    first = cache.layers[0] if cache.layers else None
    if isinstance(first, StaticLayer) and num_layers > num_attentions:
        raise ValueError(
            "past_key_values must be a dynamic cache for a model with a pool that streams, got a static one"
        )
    if missing > 0 and isinstance(first, StaticLayer):
        cache.layers += [StaticLayer(max_cache_len=first.max_cache_len) for _ in range(missing)]
    elif isinstance(cache, DynamicCache):
        cache.layers = [
            GrowingLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer
            for layer in [*cache.layers, *(DynamicLayer() for _ in range(missing))]
        ]
