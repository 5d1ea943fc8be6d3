"""Llama and Qwen3 to plain, plain to MoM: the same function where it must be, a named refusal where it cannot."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mom.errors import RequestError
from mom.interop import from_llama, load_model, upcycle
from mom.model import MoMConfig
from tests.helpers.models import small_config, small_model, tokens

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
def test_identical_logits_as_plain_blocks_and_as_a_pool_walked_in_order(kind, changes):
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


def test_a_folder_of_theirs_is_loaded(tmp_path):
    llama = random_llama("qwen3")
    llama.save_pretrained(tmp_path)
    ids = tokens(1, 9)
    torch.testing.assert_close(
        load_model(tmp_path)(input_ids=ids).logits, llama(input_ids=ids).logits, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 1}, "llama.num_key_value_heads: 1; 2"),
        ({"head_dim": 16}, "llama.head_dim: 16; 8"),
        ({"hidden_act": "gelu"}, "llama.hidden_act: gelu; silu"),
        ({"attention_bias": True}, "llama.attention_bias: True; False"),
        ({"mlp_bias": True}, "llama.mlp_bias: True; False"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "llama.rope_type: linear; default",
        ),
    ],
)
def test_what_our_blocks_do_not_compute_is_refused(changes, said):
    with pytest.raises(RequestError) as error:
        from_llama(random_llama(**changes))
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block": "gpt2"}, "model.block: gpt2; llama"),
        ({"qk_norm": True}, "model.qk_norm: True; False"),
        ({"rope_theta": 5.0}, "model.rope_theta: 5.0; 10000.0"),
        ({"tie_word_embeddings": False}, "model.tie_word_embeddings: False; True"),
    ],
)
def test_upcycling_refuses_other_components(changes, said):
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0, block="llama")
    with pytest.raises(RequestError) as error:
        upcycle(plain, small_config(**({"block": "llama"} | changes)))
    assert str(error.value).startswith(said)


def test_an_untied_head_is_upcycled_too():
    fields = {"block": "llama", "tie_word_embeddings": False}
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0, **fields)
    mom = upcycle(plain, small_config(**fields))
    assert torch.equal(mom.lm_head.weight, plain.lm_head.weight)
    assert not torch.equal(mom.lm_head.weight, mom.model.embedding.token.weight)
