"""From Hugging Face GPT-2 to a plain model of ours: the same function, the same logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mom.errors import RequestError
from mom.interop.layers import AttentionWeights, FFNWeights, Layer, copy_affine, write_block
from mom.model import MoMConfig, MoMForCausalLM

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
    ours = MoMForCausalLM(config).to(dtype=gpt2.dtype, device=gpt2.device)
    body = gpt2.transformer
    ours.model.embedding.token.weight.copy_(body.wte.weight)
    ours.model.embedding.position.weight.copy_(body.wpe.weight)
    for block, theirs_block in zip(ours.model.bottom, body.h, strict=True):
        attention, ffn = theirs_block.attn, theirs_block.mlp
        layer = Layer(
            AttentionWeights(
                norm_weight=theirs_block.ln_1.weight,
                norm_bias=theirs_block.ln_1.bias,
                qkv_weight=attention.c_attn.weight,
                qkv_bias=attention.c_attn.bias,
                out_weight=attention.c_proj.weight,
                out_bias=attention.c_proj.bias,
            ),
            FFNWeights(
                norm_weight=theirs_block.ln_2.weight,
                norm_bias=theirs_block.ln_2.bias,
                fc_weight=ffn.c_fc.weight,
                fc_bias=ffn.c_fc.bias,
                proj_weight=ffn.c_proj.weight,
                proj_bias=ffn.c_proj.bias,
            ),
        )
        write_block(block, layer)
    copy_affine(ours.model.norm, body.ln_f.weight, body.ln_f.bias)
    return ours.train(gpt2.training)
