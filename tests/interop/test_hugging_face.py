"""Converting GPT-2, Llama, and Qwen3, and upcycling: the same function, or an error that names the difference."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mom.errors import UsageError
from mom.interop import from_gpt2, from_llama, load_model, upcycle
from mom.model import MoMConfig
from tests.helpers.models import tokens

FIELDS = {
    "vocab_size": 61,
    "max_position_embeddings": 32,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
CHANGES = [
    {},
    {"tie_word_embeddings": True},
    {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
]


def random_gpt2(**changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    fields = {
        "vocab_size": 61,
        "n_positions": 32,
        "n_embd": 16,
        "n_layer": 6,
        "n_head": 2,
        "initializer_range": 0.2,
    }
    model = GPT2LMHeadModel(GPT2Config(**(fields | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_from_gpt2_has_identical_logits_as_plain_blocks_and_as_a_pool_in_order():
    gpt2 = random_gpt2(n_inner=40)
    ids = tokens(2, 12)
    expected = gpt2(input_ids=ids).logits
    plain = from_gpt2(gpt2)
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=0)

    config = MoMConfig.from_dict(
        plain.config.to_dict()
        | {
            "num_stages": 1,
            "num_bottom_blocks": 1,
            "num_top_blocks": 1,
            "num_attention_modules": 3,
            "num_ffn_modules": 3,
            "num_rounds": 3,
            "top_k": 1,
            "router": "sequential",
            "router_prior": "none",
        }
    )
    pool = upcycle(plain, config)
    torch.testing.assert_close(pool(input_ids=ids).logits, expected, atol=1e-5, rtol=0)


def test_from_gpt2_keeps_labels_loss_and_generation():
    gpt2 = random_gpt2()
    plain = from_gpt2(gpt2)
    ids = tokens(2, 12)
    torch.testing.assert_close(
        plain(input_ids=ids, labels=ids).lm_loss, gpt2(input_ids=ids, labels=ids).loss, atol=1e-5, rtol=0
    )
    arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(plain.generate(ids, **arguments), gpt2.generate(ids, **arguments))


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
    ],
)
def test_from_gpt2_rejects_what_our_blocks_do_not_compute(changes):
    with pytest.raises(UsageError, match=f"gpt2.{next(iter(changes))}"):
        from_gpt2(random_gpt2(**changes))


def random_llama(kind: str = "llama", **changes) -> LlamaForCausalLM | Qwen3ForCausalLM:
    torch.manual_seed(0)
    fields = FIELDS | changes
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_identical_logits_as_plain_blocks_and_as_a_pool_in_order(kind, changes):
    llama = random_llama(kind, **changes)
    ids = tokens(2, 12)
    expected = llama(input_ids=ids).logits
    plain = from_llama(llama)
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)

    config = MoMConfig.from_dict(
        plain.config.to_dict()
        | {
            "num_stages": 1,
            "num_bottom_blocks": 1,
            "num_top_blocks": 1,
            "anchors": False,
            "num_attention_modules": 3,
            "num_ffn_modules": 3,
            "num_rounds": 3,
            "top_k": 1,
            "router": "sequential",
            "router_prior": "none",
        }
    )
    pool = upcycle(plain, config)
    torch.testing.assert_close(pool(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_padding_loss_and_generation_are_kept(kind):
    llama = random_llama(kind)
    plain = from_llama(llama)
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    torch.testing.assert_close(
        plain(input_ids=ids, labels=ids).lm_loss, llama(input_ids=ids, labels=ids).loss, atol=1e-5, rtol=0
    )
    mask[0, :5] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(ids, **arguments), llama.generate(ids, **arguments))


def test_load_model_loads_their_folders(tmp_path):
    llama = random_llama("qwen3")
    llama.save_pretrained(tmp_path)
    ids = tokens(1, 9)
    torch.testing.assert_close(
        load_model(tmp_path)(input_ids=ids).logits, llama(input_ids=ids).logits, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 1}, "llama.num_key_value_heads must be 2, got 1"),
        ({"head_dim": 16}, "llama.head_dim must be 8, got 16"),
        ({"hidden_act": "gelu"}, "llama.hidden_act must be silu, got gelu"),
        ({"attention_bias": True}, "llama.attention_bias must be false, got true"),
        ({"mlp_bias": True}, "llama.mlp_bias must be false, got true"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "llama.rope_type must be default, got linear",
        ),
    ],
)
def test_from_llama_rejects_what_our_blocks_do_not_compute(changes, message):
    with pytest.raises(UsageError) as error:
        from_llama(random_llama(**changes))
    assert str(error.value) == message
