"""Causal multi-head attention over projected q, k, and v, with padding, a cache, and skipped keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from mom.model.components import rotated, rotation
from mom.model.configuration import MoMConfig


@dataclass(frozen=True)
class AttentionContext:
    """The values that all attentions of a forward pass share.

    Attributes:
        num_heads: attention heads.
        mask: keys that each query may attend to, boolean, or numbers to add to the scores, [B, 1, T_query, T_key];
            ``None`` means all earlier keys.
        own_key: position of each query's own key, boolean [T_query, T_key]; needed with ``mask_skipped``.
        mask_skipped: ``skipped_kv: mask``; keys of tokens that ran no attention module are hidden from other tokens.
        cache: keys and values of earlier tokens; each executed attention has its own layer.
        real: tokens that are not padding, boolean [B, T]; ``None`` means all.
        angles: rotary positions (:func:`mom.model.components.rotation`); ``None`` without them.
        attend_with: computes the attention, by default PyTorch's ``scaled_dot_product_attention``.
    """

    num_heads: int
    mask: Tensor | None
    own_key: Tensor | None
    mask_skipped: bool
    cache: Cache | None
    real: Tensor | None = None
    angles: tuple[Tensor, Tensor] | None = None
    attend_with: Callable[..., Tensor] = F.scaled_dot_product_attention

    @classmethod
    def build(
        cls,
        config: MoMConfig,
        x: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        positions: Tensor,
        given_positions: Tensor | None = None,
    ) -> AttentionContext:
        """Build the mask once for all layers.

        Args:
            x: embedded tokens, [B, T, D].
            attention_mask: 1 for real tokens, 0 for padding, [B, T_key]; or what each query may attend to,
                [B, 1, T, T_key], boolean or numbers to add to the scores.
            positions: [B, T] or [1, T].
            given_positions: the same if the caller gave them; where they start anew, so does another sequence.

        Raises:
            ValueError: the mask has another number of dimensions.
        """
        if attention_mask is not None and attention_mask.dim() not in (2, 4):
            shape = list(attention_mask.shape)
            raise ValueError(f"attention_mask must have shape [B, T] or [B, 1, T, T_key], got {shape}")
        mask_skipped = config.skipped_kv == "mask" and config.num_stages > 0
        mask = create_causal_mask(
            config=config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=given_positions,
            allow_is_causal_skip=not mask_skipped,
        )
        own_key, real = None, real_tokens(attention_mask, x)
        if mask is not None:
            assert isinstance(mask, Tensor), "only flex attention makes another kind"
            length, num_keys = x.shape[1], mask.shape[-1]
            past = cache.get_seq_length() if cache is not None else 0
            query = torch.arange(length, device=x.device) + past
            own_key = query[:, None] == torch.arange(num_keys, device=x.device)  # (T_query, T_key)
            allowed = _allowed(mask)  # (B, 1, T_query, T_key)
            if real is None and attention_mask is not None:
                real = (allowed & own_key).any(dim=-1).all(dim=1)  # (B, T)
            # Without a key, the softmax of padding would be NaN; no real token reads its output.
            mask = _opened(mask, own_key & ~allowed.any(dim=-1, keepdim=True))
        angles = rotation(config, positions) if config.components.rotary else None
        return cls(config.num_heads, mask, own_key, mask_skipped, cache, real, angles)

    def step(self, layer_index: int) -> StepContext:
        """Return the context of a pool's step."""
        return StepContext(self, layer_index)

    def attend(self, qkv: Tensor, layer_index: int, active: Tensor | None = None) -> Tensor:
        """Attend causally with several heads, [B, T, 3D] → [B, T, D].

        Args:
            qkv: queries, keys, and values.
            layer_index: the layer in the cache.
            active: tokens that have a key and a value, boolean [B, T]; ``None`` means all.
        """
        batch, length, width = qkv.shape
        heads = qkv.view(batch, length, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads) each
        if self.angles is not None:
            query, key = rotated(query, self.angles), rotated(key, self.angles)
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer_index)
        mask = self.mask
        if self.mask_skipped and active is not None:
            assert mask is not None and self.own_key is not None
            mask = _closed(mask, ~(self._seen(active, key)[:, None, None, :] | self.own_key))
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        out = self.attend_with(query, key, value, attn_mask=mask, is_causal=mask is None and length > 1)
        return out.transpose(1, 2).reshape(batch, length, width // 3)  # (B, T, D)

    def _seen(self, active: Tensor, key: Tensor) -> Tensor:
        """Return the keys that other tokens may attend to, boolean [B, T_key].

        A token that ran no module has a key of exactly 0, which no projection yields, so cached keys need no record
        of it, and beam search may reorder them.
        """
        if self.cache is None:
            return active
        return (key != 0).any(dim=-1).any(dim=1)


def real_tokens(attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return which of the T tokens of x, [B, T, D], are not padding, boolean [B, T]; ``None`` means all."""
    if attention_mask is None:
        return None
    if attention_mask.dim() == 2:
        return attention_mask[:, -x.shape[1] :].bool()
    return None


def _allowed(mask: Tensor) -> Tensor:
    """Return which keys a mask allows, boolean, from booleans, zeros and ones, or numbers to add to the scores."""
    return mask > torch.finfo(mask.dtype).min if mask.is_floating_point() else mask.bool()


def _opened(mask: Tensor, keys: Tensor) -> Tensor:
    """Return a mask, boolean or of numbers to add, that allows these keys too."""
    return mask.masked_fill(keys, 0) if mask.is_floating_point() else mask.bool() | keys


def _closed(mask: Tensor, keys: Tensor) -> Tensor:
    """Return a mask, boolean or of numbers to add, without these keys."""
    if mask.is_floating_point():
        return mask.masked_fill(keys, torch.finfo(mask.dtype).min)
    return mask & ~keys


class EagerAttention:
    """Attention in plain operations (``attn_implementation="eager"``), which can keep its weights.

    Attributes:
        weights: the weights of each attention so far, [B, heads, T_query, T_key], if they are kept.
    """

    def __init__(self, *, keeps_weights: bool) -> None:
        self.weights: list[Tensor] | None = [] if keeps_weights else None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Compute what ``scaled_dot_product_attention`` does, [B, heads, T, D / heads] each."""
        scores = query @ key.mT / math.sqrt(query.shape[-1])  # (B, heads, T_query, T_key)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.is_floating_point():
            scores = scores + attn_mask
        elif attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights = weights.to(query.dtype)
        if self.weights is not None:
            self.weights.append(weights)
        return weights @ value


@dataclass(frozen=True)
class StepContext:
    """Access of a pool's step to the rest of the sequence.

    Attributes:
        sequence: values that all steps of this forward pass share.
        layer_index: the step's layer in the cache.
    """

    sequence: AttentionContext
    layer_index: int

    @property
    def real(self) -> Tensor | None:
        """Tokens that are not padding, boolean [B, T]; ``None`` means all."""
        return self.sequence.real

    def attend(self, qkv: Tensor, active: Tensor) -> Tensor:
        """Attend causally, [B, T, 3D] → [B, T, D]; see :meth:`AttentionContext.attend`."""
        return self.sequence.attend(qkv, self.layer_index, active)

    def with_past(self, x: Tensor, length: int) -> Tensor:
        """Prepend the vectors of the ``length`` previous tokens, [B, T, width] → [B, length + T, width].

        They come from the cache, which keeps the vectors of earlier calls; before a sequence's start they are zeros.
        """
        total = length + x.shape[1]
        if self.sequence.cache is not None:
            states = x[:, None]  # (B, 1, T, width), as keys; there are no values
            x = self.sequence.cache.update(states, states[..., :0], self.layer_index)[0][:, 0, -total:]
        return F.pad(x, (0, 0, total - x.shape[1], 0))
