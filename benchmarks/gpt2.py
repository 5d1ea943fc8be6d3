"""The GPT-2 of transformers at a benchmark's size."""

from __future__ import annotations

from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.setting import Size


def build_gpt2(size: Size, layers: int) -> GPT2LMHeadModel:
    """Return GPT-2 with the size's width and vocabulary, without dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocab_size,
            n_positions=size.length,
            n_embd=size.d_model,
            n_head=size.num_heads,
            n_layer=layers,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
