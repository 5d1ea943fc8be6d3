"""Positions of tokens: computing and checking them, also where a row holds several sequences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

from mom.model.configuration import MoMConfig


def token_positions(
    config: MoMConfig, x: Tensor, attention_mask: Tensor | None, given: Tensor | None, cache: Cache | None
) -> Tensor:
    """Return the positions of the tokens, [B, T] or [1, T], and check them.

    Args:
        config: the model's options.
        x: embedded tokens, [B, T, D].
        attention_mask: 1 for real tokens, which alone count, and 0 for padding, [B, T_past + T].
        given: positions that the caller gives, [B, T], are returned as they are.
        cache: earlier tokens.

    Raises:
        ValueError: a position is beyond ``max_positions``, or positions start anew in a row that a pool streams over.
    """
    length = x.shape[1]
    past = cache.get_seq_length() if cache is not None else 0
    if given is not None:
        check_positions(config, given)
        # Compiling reads neither the positions nor, with a static cache, the number of earlier tokens.
        if not torch.compiler.is_compiling() and not past and attention_mask is None:
            _check_one_sequence(config, given)
        return given
    if attention_mask is not None and attention_mask.dim() == 2:
        counted = (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
        positions = counted[:, -length:]
    else:
        positions = torch.arange(length, device=x.device)[None] + past
    # Reading positions makes a GPU wait, so they are read only if there may be too many.
    if not torch.compiler.is_compiling() and past + length > config.max_positions:
        check_positions(config, positions)
    return positions


def check_positions(config: MoMConfig, positions: Tensor) -> None:
    """Check that positions exist, unless they cannot be read because the model is being compiled.

    A GPU checks them without making the host wait, and fails later.

    Raises:
        ValueError: a position is beyond ``max_positions``.
    """
    if torch.compiler.is_compiling() or not positions.numel():
        return
    most = config.max_positions
    if positions.device.type != "cpu":
        torch._assert_async((positions < most).all(), f"positions must be below max_positions ({most})")
        return
    last = int(positions.max())
    if last >= most:
        raise ValueError(f"the sequence must have at most max_positions ({most}) tokens, got {last + 1}")


def _check_one_sequence(config: MoMConfig, positions: Tensor) -> None:
    """Check that each row is one sequence, for pools that see the tokens before a token in its row."""
    pools = config.pools() if config.num_stages else ()
    streaming = [layout.name for layout in pools if layout.kind.streams]
    if streaming and positions.device.type != "meta" and (positions.diff(dim=-1) != 1).any():
        names = " and ".join(streaming)
        raise ValueError(f"position_ids must not start anew within a row: the pool {names} streams over it")


class Packing(FlashAttentionKwargs, total=False):
    """Where packed sequences start, as data collators tell flash attention and state space models."""

    seq_idx: Tensor | None


def check_packing(packed: Mapping[str, object], position_ids: Tensor | None) -> None:
    """Check what tells others where packed sequences start; our attention learns it from the positions.

    Raises:
        TypeError: another argument is among them.
        ValueError: there are no positions.
    """
    unknown = [name for name in packed if name not in Packing.__optional_keys__]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument '{unknown[0]}'")
    if position_ids is None and any(value is not None for value in packed.values()):
        raise ValueError(f"{', '.join(packed)} require position_ids, which start anew with each sequence")
