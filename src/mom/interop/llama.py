"""From Hugging Face Llama and Qwen3 to a plain model of ours: the same function, the same logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mom.errors import RequestError
from mom.interop.layers import AttentionWeights, FFNWeights, Layer, copy_affine, write_block
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.blocks import Block

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, Qwen3ForCausalLM

KINDS = ("llama", "qwen3")
"""Values of ``model_type`` that :func:`from_llama` takes."""


@torch.no_grad()
def from_llama(llama: LlamaForCausalLM | Qwen3ForCausalLM) -> MoMForCausalLM:
    """Copy a `transformers` Llama or Qwen3 language model into a plain :class:`MoMForCausalLM`.

    Args:
        llama: of any size whose every query head has a key and value head of its own. Embeddings and head stay
            tied or untied as they are; Qwen3's norms of queries and keys become ``qk_norm``.

    Returns:
        A model with ``block="llama"`` and ``num_stages=0`` whose logits are identical (to rounding).

    Raises:
        RequestError: options that our blocks do not compute, grouped-query attention among them.
    """
    theirs = llama.config
    rope: dict[str, Any] = {**(theirs.rope_parameters or {})}
    for name, given, allowed in _unsupported(theirs, rope):
        raise RequestError(f"{theirs.model_type}.{name}", given, allowed)
    config = MoMConfig(
        block="llama",
        vocab_size=theirs.vocab_size,
        max_positions=theirs.max_position_embeddings,
        d_model=theirs.hidden_size,
        num_heads=theirs.num_attention_heads,
        d_ffn=theirs.intermediate_size,
        num_bottom_blocks=theirs.num_hidden_layers,
        num_top_blocks=0,
        num_stages=0,
        qk_norm=theirs.model_type == "qwen3",
        rope_theta=float(rope["rope_theta"]),
        tie_word_embeddings=theirs.tie_word_embeddings,
        layer_norm_epsilon=theirs.rms_norm_eps,
        initializer_range=theirs.initializer_range,
        bos_token_id=theirs.bos_token_id,
        eos_token_id=theirs.eos_token_id,
        pad_token_id=theirs.pad_token_id,
    )
    ours = MoMForCausalLM(config)
    nn.Module.to(ours, dtype=llama.dtype, device=llama.device)
    weights = llama.state_dict()
    ours.model.embedding.token.weight.copy_(weights["model.embed_tokens.weight"])
    ours.lm_head.weight.copy_(weights["lm_head.weight"])
    for index, block in enumerate(ours.model.bottom):
        assert isinstance(block, Block)
        write_block(block, _layer(weights, f"model.layers.{index}"))
    copy_affine(ours.model.norm, weights["model.norm.weight"])
    return ours.train(llama.training)


def _unsupported(theirs: Any, rope: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Option, what is given and what is allowed, of each option that our blocks do not compute."""
    heads = theirs.num_attention_heads
    head_width = theirs.hidden_size // heads
    wanted = [
        ("model_type", theirs.model_type, KINDS),
        ("num_key_value_heads", theirs.num_key_value_heads, (heads,)),
        ("head_dim", getattr(theirs, "head_dim", None) or head_width, (head_width,)),
        ("hidden_act", theirs.hidden_act, ("silu",)),
        ("attention_bias", theirs.attention_bias, (False,)),
        ("mlp_bias", getattr(theirs, "mlp_bias", False), (False,)),
        ("rope_type", rope.get("rope_type", "default"), ("default",)),
        ("use_sliding_window", getattr(theirs, "use_sliding_window", False), (False,)),
    ]
    return [
        (name, given, " or ".join(map(str, allowed)))
        for name, given, allowed in wanted
        if given not in allowed
    ]


def _layer(weights: Mapping[str, Tensor], at: str) -> Layer:
    """One layer by Llama's names, whose projections are stored [out, in]."""

    def joined(*names: str) -> Tensor:
        return torch.cat([weights[f"{at}.{name}.weight"] for name in names]).t()

    return Layer(
        AttentionWeights(
            norm_weight=weights[f"{at}.input_layernorm.weight"],
            qkv_weight=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out_weight=joined("self_attn.o_proj"),
            q_norm_weight=weights.get(f"{at}.self_attn.q_norm.weight"),
            k_norm_weight=weights.get(f"{at}.self_attn.k_norm.weight"),
        ),
        FFNWeights(
            norm_weight=weights[f"{at}.post_attention_layernorm.weight"],
            fc_weight=joined("mlp.gate_proj", "mlp.up_proj"),
            proj_weight=joined("mlp.down_proj"),
        ),
    )
