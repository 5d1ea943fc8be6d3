"""Module kinds, one per file; importing this package registers them, without loading PyTorch."""

from mom.model.pools.attention import Attention
from mom.model.pools.ffn import FFN
from mom.model.pools.kind import PoolKind
from mom.model.pools.shared_kv_attention import SharedKVAttention

__all__ = ["FFN", "Attention", "PoolKind", "SharedKVAttention"]
