"""Causal multi-head attention over projected q, k, and v, with padding, a cache, and skipped keys."""

from __future__ import annotations

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
        mask: keys that each query may attend to, boolean [B, 1, T_query, T_key]; ``None`` means all earlier keys.
        own_key: position of each query's own key, boolean [T_query, T_key]; needed with ``mask_skipped``.
        mask_skipped: ``skipped_kv: mask``; keys of tokens that ran no attention module are hidden from other tokens.
        cache: keys and values of earlier tokens; each executed attention has its own layer.
        real: tokens that are not padding, boolean [B, T]; ``None`` means all.
        angles: rotary positions (:func:`mom.model.components.rotation`); ``None`` without them.
    """

    num_heads: int
    mask: Tensor | None
    own_key: Tensor | None
    mask_skipped: bool
    cache: Cache | None
    real: Tensor | None = None
    angles: tuple[Tensor, Tensor] | None = None

    @classmethod
    def build(
        cls,
        config: MoMConfig,
        x: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        position_ids: Tensor,
    ) -> AttentionContext:
        """Build the mask once for all layers.

        Args:
            x: embedded tokens, [B, T, D].
            attention_mask: 1 for real tokens, 0 for padding, [B, T_key].
            position_ids: [B, T] or [1, T].
        """
        mask_skipped = config.skipped_kv == "mask" and config.num_stages > 0
        mask = create_causal_mask(
            config=config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids if attention_mask is not None else None,
            allow_is_causal_skip=not mask_skipped,
        )
        own_key = None
        if mask is not None:
            assert isinstance(mask, Tensor), "only flex attention makes another kind"
            length, num_keys = x.shape[1], mask.shape[-1]
            past = cache.get_seq_length() if cache is not None else 0
            query = torch.arange(length, device=x.device) + past
            own_key = query[:, None] == torch.arange(num_keys, device=x.device)  # (T_query, T_key)
            # Without a key, the softmax of padding would be NaN; no real token reads its output.
            mask = mask | own_key
        angles = rotation(config, position_ids) if config.components.rotary else None
        real = None
        if attention_mask is not None and attention_mask.dim() == 2:
            real = attention_mask[:, -x.shape[1] :].bool()  # (B, T)
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
            mask = mask & (self._seen(active, key)[:, None, None, :] | self.own_key)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None and length > 1
        )
        return out.transpose(1, 2).reshape(batch, length, width // 3)  # (B, T, D)

    def _seen(self, active: Tensor, key: Tensor) -> Tensor:
        """Return the keys that other tokens may attend to, boolean [B, T_key].

        A token that ran no module has a key of exactly 0, which no projection yields, so cached keys need no record
        of it, and beam search may reorder them.
        """
        if self.cache is None:
            return active
        return (key != 0).any(dim=-1).any(dim=1)


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
