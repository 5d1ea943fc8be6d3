"""A hash of token ID and round that ranks slots, the same in every batch, device, and process."""

from __future__ import annotations

from typing import Any


def hashed_ranking(token_ids: Any, round_index: int, slots: Any, salt: int) -> Any:
    """Return numbers in [0, 1) that rank slots for each token ID, [...] and [slots] → [..., slots], float32."""
    key = (token_ids[..., None] * 1_000_003 + round_index) * 8_191 + slots  # (..., slots), int64
    return _hash_to_unit(key * 131 + salt)


def _hash_to_unit(key: Any) -> Any:
    """Hash integers to floats in [0, 1) by multiplications, shifts, and xors within 31 bits, exact on every device."""
    mask = 0x7FFFFFFF
    value = key & mask
    for multiplier in (0x45D9F3B, 0x119DE1F3, 0x45D9F3B):
        value = ((value ^ (value >> 15)) * multiplier) & mask
    return (value ^ (value >> 16)).float() / (mask + 1.0)
