"""GPT-2 to plain, plain to MoM: the same function where it must be, a named refusal where it cannot."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mom.errors import RequestError
from mom.interop import UpcyclingPlan, from_gpt2, plain_config, upcycle
from mom.interop.upcycling import StagePlan
from mom.model import MoMConfig, pool
from tests.helpers.models import small_config, small_model, tokens


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


def test_from_gpt2_has_identical_logits_as_plain_blocks_and_as_a_pool_walked_in_order():
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
def test_from_gpt2_refuses_what_our_blocks_do_not_compute(changes):
    with pytest.raises(RequestError, match=f"gpt2.{next(iter(changes))}"):
        from_gpt2(random_gpt2(**changes))


@pytest.mark.parametrize("folds", [False, True])
def test_two_stages_walked_in_order_equal_the_plain_model_exactly(monkeypatch, folds):
    """Bit for bit on the CPU where the pools apply their LayerNorms to the tokens, as they do where tokens are few:
    the operations are then those of the plain model, in the same order.

    With many tokens they fold the LayerNorms' scales into the weights: (W · scale) x in the place of
    W (scale · x), which is the same but for rounding (here 3e-6 of logits up to 4). Where the scales are 1 and
    the shifts 0 nothing is rounded, and folding is exact too.
    """
    monkeypatch.setattr(pool, "worth_folding", lambda *_: folds)
    config = small_config(
        num_stages=2, num_rounds=2, num_attention_modules=2, num_ffn_modules=2, router="sequential", top_k=1
    )
    plain = small_model(**fields_of(plain_config(config)))
    assert plain.config.graph_depth == config.graph_depth == 8
    ids = tokens(2, 10)
    ours, theirs = upcycle(plain, config)(input_ids=ids).logits, plain(input_ids=ids).logits
    assert theirs.abs().max() > 1
    if not folds:
        assert torch.equal(ours, theirs)
        return
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for module in plain.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.reset_parameters()
    assert torch.equal(upcycle(plain, config)(input_ids=ids).logits, plain(input_ids=ids).logits)


def fields_of(config: MoMConfig) -> dict:
    return {name: getattr(config, name) for name in ("num_stages", "num_bottom_blocks", "num_top_blocks")}


def test_a_strong_ordered_prior_keeps_the_function():
    config = small_config(num_rounds=4, router_prior="ordered", router_prior_strength=12.0, temperature=0.2)
    plain = small_model(**fields_of(plain_config(config)))
    ids = tokens(4, 16)
    before = plain(input_ids=ids, labels=ids).lm_loss.detach()
    torch.manual_seed(0)
    kept = upcycle(plain, config)
    torch.manual_seed(0)
    fresh = upcycle(plain, small_config(num_rounds=4, temperature=0.2))
    torch.testing.assert_close(kept(input_ids=ids, labels=ids).lm_loss, before, atol=1e-3, rtol=0)
    assert abs(float(fresh(input_ids=ids, labels=ids).lm_loss - before)) > 1e-2


def test_default_plan_is_consecutive_and_reads_well():
    config = small_config(num_attention_modules=2, num_ffn_modules=4, num_stages=1)
    plan = UpcyclingPlan.consecutive(config)
    assert plan.describe() == [
        ("bottom blocks", "layer 0"),
        ("stage 0 attention modules", "layers 1, 2"),
        ("stage 0 feed-forward modules", "layers 1, 2, 3, 4"),
        ("stage 0 anchor block", "layer 5"),
        ("top blocks", "layer 6"),
    ]


def test_a_plan_says_which_layer_goes_where():
    config = small_config(num_attention_modules=2, num_ffn_modules=2)
    plain = small_model(num_stages=0, num_bottom_blocks=5, num_top_blocks=0)
    plan = UpcyclingPlan(bottom=(4,), stages=(StagePlan((3, 0), (1, 1), 2),), top=(0,))
    mom = upcycle(plain, config, plan)
    blocks, stage = plain.model.bottom, mom.model.stages[0]
    assert torch.equal(mom.model.bottom[0].attention.qkv.weight, blocks[4].attention.qkv.weight)
    assert torch.equal(stage.attention.pool.qkv_weight[0], blocks[3].attention.qkv.weight.T)
    assert torch.equal(stage.attention.pool.out_weight[1], blocks[0].attention.out.weight.T)
    assert torch.equal(stage.ffn.pool.fc_weight[0], stage.ffn.pool.fc_weight[1])
    assert torch.equal(stage.anchor.ffn.proj.bias, blocks[2].ffn.proj.bias)
    assert torch.equal(mom.model.norm.weight, plain.model.norm.weight)
    with pytest.raises(RequestError, match="plan: layer 9; a layer from 0 to 4"):
        upcycle(plain, config, UpcyclingPlan(bottom=(9,), stages=plan.stages, top=(0,)))
    with pytest.raises(RequestError, match=r"plan.top: 2 entries; 1"):
        upcycle(plain, config, UpcyclingPlan(bottom=(0,), stages=plan.stages, top=(0, 1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_model": 32}, "model.d_model: 32; 16, as in the plain model"),
        ({"vocab_size": 62}, "model.vocab_size: 62; 61"),
        ({"d_ffn": 10}, "model.d_ffn: 10; 64"),
        ({"num_top_blocks": 2}, "init: a plain model of 6 layers; one of 7"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, said):
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0)
    with pytest.raises(RequestError) as error:
        upcycle(plain, small_config(**changes))
    assert said in str(error.value)


def test_an_mom_is_not_upcycled_again():
    with pytest.raises(RequestError, match="init: a model with 1 stages"):
        upcycle(small_model(), small_config())


@pytest.mark.parametrize(
    "experts", [{"num_ffn_modules": 4, "ffn_top_k": 1}, {"num_ffn_modules": 12, "ffn_top_k": 2}]
)
def test_experts_start_as_copies_of_their_layer_and_compute_the_same(experts):
    moe = {"schedule": "layerwise", "ffn_schedule": "grouped", "skip": False, "top_k": 1, "anchors": False}
    config = small_config(num_attention_modules=4, num_rounds=4, router_prior="looped", **moe, **experts)
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0)
    assert plain_config(config).num_bottom_blocks == 6
    plan = UpcyclingPlan.consecutive(config).stages[0]
    assert plan.ffn == tuple(layer for layer in (1, 2, 3, 4) for _ in range(config.num_ffn_modules // 4))
    ids = tokens(2, 9)
    torch.testing.assert_close(
        upcycle(plain, config)(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4, rtol=0
    )
