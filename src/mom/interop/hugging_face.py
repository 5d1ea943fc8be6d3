"""Convert Hugging Face GPT-2, Llama, and Qwen3 models to plain models with the same logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mom.errors import UsageError, as_written
from mom.interop.layers import Names, affine, read_layer, write_block
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.blocks import Block

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM


class _Layout(NamedTuple):
    """The parameter names of a model family.

    Attributes:
        outside: our parameters outside the blocks -> their names.
        layer: names within a layer, with ``{i}`` for its number.
        transpose: matrices are [out, in].
    """

    outside: Mapping[str, str]
    layer: Names
    transpose: bool


_GPT2 = _Layout(
    outside={
        "model.embedding.token.weight": "transformer.wte.weight",
        "model.embedding.position.weight": "transformer.wpe.weight",
        "model.norm.weight": "transformer.ln_f.weight",
        "model.norm.bias": "transformer.ln_f.bias",
    },
    layer={
        "attention": affine("norm", "transformer.h.{i}.ln_1")
        | affine("qkv", "transformer.h.{i}.attn.c_attn")
        | affine("out", "transformer.h.{i}.attn.c_proj"),
        "ffn": affine("norm", "transformer.h.{i}.ln_2")
        | affine("fc", "transformer.h.{i}.mlp.c_fc")
        | affine("proj", "transformer.h.{i}.mlp.c_proj"),
    },
    transpose=False,
)
_LLAMA = _Layout(
    outside={
        "model.embedding.token.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
        "model.norm.weight": "model.norm.weight",
    },
    layer={
        "attention": {
            "norm_weight": "model.layers.{i}.input_layernorm.weight",
            "qkv_weight": tuple(f"model.layers.{{i}}.self_attn.{name}_proj.weight" for name in "qkv"),
            "out_weight": "model.layers.{i}.self_attn.o_proj.weight",
        },
        "ffn": {
            "norm_weight": "model.layers.{i}.post_attention_layernorm.weight",
            "fc_weight": ("model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
            "proj_weight": "model.layers.{i}.mlp.down_proj.weight",
        },
    },
    transpose=True,
)
_QWEN3 = _LLAMA._replace(
    layer={
        **_LLAMA.layer,
        "attention": {
            **_LLAMA.layer["attention"],
            "q_norm_weight": "model.layers.{i}.self_attn.q_norm.weight",
            "k_norm_weight": "model.layers.{i}.self_attn.k_norm.weight",
        },
    }
)
LLAMA_FAMILIES = {"llama": _LLAMA, "qwen3": _QWEN3}
"""Families that :func:`from_llama` accepts, by their ``model_type``."""


_GPT2_OPTIONS: Mapping[str, Sequence[Any]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""Options of GPT-2 and the values that our blocks support."""


def from_gpt2(gpt2: GPT2LMHeadModel) -> MoMForCausalLM:
    """Copy a `transformers` GPT-2 language model into a plain :class:`MoMForCausalLM`.

    Args:
        gpt2: any size. Its ``resid_pdrop`` becomes ``dropout``; dropout of attention probabilities, which our blocks
            do not have, is ignored.

    Returns:
        A model with ``num_stages=0`` and the same logits up to rounding.

    Raises:
        UsageError: GPT-2 has options that our blocks do not support.
    """
    theirs = gpt2.config
    check_supported(
        "gpt2", {name: (getattr(theirs, name), allowed) for name, allowed in _GPT2_OPTIONS.items()}
    )
    config = MoMConfig(
        vocab_size=theirs.vocab_size,
        max_positions=theirs.n_positions,
        d_model=theirs.n_embd,
        num_heads=theirs.n_head,
        d_ffn=theirs.n_inner,
        num_bottom_blocks=theirs.n_layer,
        dropout=float(theirs.resid_pdrop),
        layer_norm_epsilon=theirs.layer_norm_epsilon,
        **_shared_fields(theirs),
    )
    return _converted(gpt2, config, _GPT2)


def from_llama(llama: LlamaForCausalLM | Qwen3ForCausalLM) -> MoMForCausalLM:
    """Copy a `transformers` Llama or Qwen3 language model into a plain :class:`MoMForCausalLM`.

    Args:
        llama: any size in which every query head has its own key and value head. Embeddings and head stay tied
            or untied; Qwen3's norms of queries and keys become ``qk_norm``.

    Returns:
        A model with ``block="llama"`` and ``num_stages=0`` and the same logits up to rounding.

    Raises:
        UsageError: the model has options that our blocks do not support, such as grouped-query attention.
    """
    theirs = llama.config
    rope: dict[str, Any] = {**(theirs.rope_parameters or {})}
    heads = theirs.num_attention_heads
    head_width = theirs.hidden_size // heads
    check_supported(
        theirs.model_type,
        {
            "model_type": (theirs.model_type, tuple(LLAMA_FAMILIES)),
            "num_key_value_heads": (theirs.num_key_value_heads, (heads,)),
            "head_dim": (getattr(theirs, "head_dim", None) or head_width, (head_width,)),
            "hidden_act": (theirs.hidden_act, ("silu",)),
            "attention_bias": (theirs.attention_bias, (False,)),
            "mlp_bias": (getattr(theirs, "mlp_bias", False), (False,)),
            "rope_type": (rope.get("rope_type", "default"), ("default",)),
            "use_sliding_window": (getattr(theirs, "use_sliding_window", False), (False,)),
        },
    )
    config = MoMConfig(
        block="llama",
        vocab_size=theirs.vocab_size,
        max_positions=theirs.max_position_embeddings,
        d_model=theirs.hidden_size,
        num_heads=heads,
        d_ffn=theirs.intermediate_size,
        num_bottom_blocks=theirs.num_hidden_layers,
        qk_norm=theirs.model_type == "qwen3",
        rope_theta=float(rope["rope_theta"]),
        tie_word_embeddings=theirs.tie_word_embeddings,
        layer_norm_epsilon=theirs.rms_norm_eps,
        **_shared_fields(theirs),
    )
    return _converted(llama, config, LLAMA_FAMILIES[theirs.model_type])


def check_supported(owner: str, options: Mapping[str, tuple[Any, Sequence[Any]]]) -> None:
    """Reject a model with unsupported options.

    Args:
        owner: prefix of the options in errors, such as ``gpt2``.
        options: for each option, its value and the supported values.

    Raises:
        UsageError: for the first option with an unsupported value.
    """
    for name, (given, supported) in options.items():
        if given not in supported:
            choices = [as_written(choice) for choice in supported]
            allowed = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
            raise UsageError(f"{owner}.{name} must be {allowed}, got {as_written(given)}")


def _shared_fields(theirs: Any) -> dict[str, Any]:
    """Return the options that all model families share."""
    names = ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    return {"num_top_blocks": 0, "num_stages": 0, **{name: getattr(theirs, name) for name in names}}


@torch.no_grad()
def _converted(theirs: PreTrainedModel, config: MoMConfig, layout: _Layout) -> MoMForCausalLM:
    """Build a plain model and copy all weights into it, keeping dtype, device, and training mode."""
    ours = MoMForCausalLM(config)
    nn.Module.to(ours, dtype=theirs.dtype, device=theirs.device)
    weights = theirs.state_dict()
    for name, source in layout.outside.items():
        ours.get_parameter(name).copy_(weights[source])
    for index, block in enumerate(ours.model.bottom):
        assert isinstance(block, Block)
        layer = read_layer(weights.__getitem__, layout.layer, transpose=layout.transpose, i=index)
        write_block(block, layer)
    return ours.train(theirs.training)
