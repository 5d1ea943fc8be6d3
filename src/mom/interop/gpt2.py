"""From Hugging Face GPT-2 to a plain model of ours: the same function, the same logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mom.errors import RequestError
from mom.interop.layers import AttentionWeights, FFNWeights, Layer, copy_affine, write_block
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.blocks import Block

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# What our blocks compute; a GPT-2 that asks for anything else is another function.
_SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


@torch.no_grad()
def from_gpt2(gpt2: GPT2LMHeadModel) -> MoMForCausalLM:
    """Copy a `transformers` GPT-2 language model into a plain :class:`MoMForCausalLM`.

    Args:
        gpt2: any size. Its ``resid_pdrop`` becomes our ``dropout``; dropout of attention probabilities, which
            our blocks do not have, is left out.

    Returns:
        A model with ``num_stages=0`` whose logits are identical (to rounding).

    Raises:
        RequestError: GPT-2 options that our blocks do not compute.
    """
    theirs = gpt2.config
    for name, allowed in _SUPPORTED.items():
        given = getattr(theirs, name)
        if given not in allowed:
            raise RequestError(f"gpt2.{name}", given, f"one of {', '.join(map(str, allowed))}")
    config = MoMConfig(
        vocab_size=theirs.vocab_size,
        max_positions=theirs.n_positions,
        d_model=theirs.n_embd,
        num_heads=theirs.n_head,
        d_ffn=theirs.n_inner,
        num_bottom_blocks=theirs.n_layer,
        num_top_blocks=0,
        num_stages=0,
        dropout=float(theirs.resid_pdrop),
        layer_norm_epsilon=theirs.layer_norm_epsilon,
        initializer_range=theirs.initializer_range,
        bos_token_id=theirs.bos_token_id,
        eos_token_id=theirs.eos_token_id,
        pad_token_id=theirs.pad_token_id,
    )
    ours = MoMForCausalLM(config)
    nn.Module.to(ours, dtype=gpt2.dtype, device=gpt2.device)
    weights = gpt2.transformer.state_dict()
    ours.model.embedding.token.weight.copy_(weights["wte.weight"])
    ours.model.embedding.position.weight.copy_(weights["wpe.weight"])
    for index, block in enumerate(ours.model.bottom):
        assert isinstance(block, Block)
        write_block(block, _layer(weights, f"h.{index}"))
    copy_affine(ours.model.norm, weights["ln_f.weight"], weights["ln_f.bias"])
    return ours.train(gpt2.training)


def _layer(weights: Mapping[str, Tensor], at: str) -> Layer:
    """One layer by GPT-2's names, whose projections are stored [in, out]."""
    return Layer(
        AttentionWeights(
            norm_weight=weights[f"{at}.ln_1.weight"],
            norm_bias=weights[f"{at}.ln_1.bias"],
            qkv_weight=weights[f"{at}.attn.c_attn.weight"],
            qkv_bias=weights[f"{at}.attn.c_attn.bias"],
            out_weight=weights[f"{at}.attn.c_proj.weight"],
            out_bias=weights[f"{at}.attn.c_proj.bias"],
        ),
        FFNWeights(
            norm_weight=weights[f"{at}.ln_2.weight"],
            norm_bias=weights[f"{at}.ln_2.bias"],
            fc_weight=weights[f"{at}.mlp.c_fc.weight"],
            fc_bias=weights[f"{at}.mlp.c_fc.bias"],
            proj_weight=weights[f"{at}.mlp.c_proj.weight"],
            proj_bias=weights[f"{at}.mlp.c_proj.bias"],
        ),
    )
