"""Upcycling: the same function if possible, or an error that names the difference."""

from __future__ import annotations

import pytest
import torch

from mom.errors import UsageError
from mom.interop import UpcyclingPlan, plain_config, upcycle
from mom.interop.upcycling import StagePlan
from mom.model import MoMConfig
from mom.model.pools import pool
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.plugins import THREE_POOLS, causal_conv


@pytest.mark.parametrize("folds", [False, True])
def test_two_stages_in_order_equal_the_plain_model_exactly(monkeypatch, folds):
    """Bit for bit on the CPU if the pools apply their LayerNorms to the tokens, as they do with few tokens: the
    operations are then those of the plain model, in the same order.

    With many tokens they fold the LayerNorms' scales into the weights, (W · scale) x instead of W (scale · x), which
    is the same up to rounding (here 3e-6 of logits up to 4). With scales of 1 and shifts of 0 nothing is rounded, and
    folding is exact too.
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
        ("stage 0 FFN modules", "layers 1, 2, 3, 4"),
        ("stage 0 anchor block", "layer 5"),
        ("top blocks", "layer 6"),
    ]


def test_a_plan_sets_the_source_layers():
    config = small_config(num_attention_modules=2, num_ffn_modules=2)
    plain = small_model(num_stages=0, num_bottom_blocks=5, num_top_blocks=0)
    plan = UpcyclingPlan(bottom=(4,), stages=(StagePlan({"attention": (3, 0), "ffn": (1, 1)}, 2),), top=(0,))
    mom = upcycle(plain, config, plan)
    blocks, stage = plain.model.bottom, mom.model.stages[0]
    assert torch.equal(mom.model.bottom[0].attention.qkv.weight, blocks[4].attention.qkv.weight)
    assert torch.equal(stage.attention.pool.qkv_weight[0], blocks[3].attention.qkv.weight.T)
    assert torch.equal(stage.attention.pool.out_weight[1], blocks[0].attention.out.weight.T)
    assert torch.equal(stage.ffn.pool.fc_weight[0], stage.ffn.pool.fc_weight[1])
    assert torch.equal(stage.anchor.ffn.proj.bias, blocks[2].ffn.proj.bias)
    assert torch.equal(mom.model.norm.weight, plain.model.norm.weight)
    with pytest.raises(UsageError, match="plan must name layers between 0 and 4, got 9"):
        upcycle(plain, config, UpcyclingPlan(bottom=(9,), stages=plan.stages, top=(0,)))
    with pytest.raises(UsageError, match=r"plan.top must have 1 entries, got 2"):
        upcycle(plain, config, UpcyclingPlan(bottom=(0,), stages=plan.stages, top=(0, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 32}, "model.d_model must be 16, as in the model of init, got 32"),
        ({"vocab_size": 62}, "model.vocab_size must be 61, as in the model of init, got 62"),
        ({"d_ffn": 10}, "model.d_ffn must be 64, as in the model of init, got 10"),
        (
            {"pools": {"attention": {}, "ffn": {"d_ffn": 10}}},
            "model.pools.ffn must have modules of the shapes of the blocks of init (fc 16 x 64, proj 64 x 16), "
            "got fc 16 x 10, proj 10 x 16",
        ),
        (
            {"num_top_blocks": 2},
            "init must have 7 layers (1 bottom, then for each of 1 stage(s) 3 modules and an anchor",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(changes, message):
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0)
    with pytest.raises(UsageError) as error:
        upcycle(plain, small_config(**changes))
    assert message in str(error.value)


def test_only_plain_models_are_upcycled():
    with pytest.raises(UsageError, match=r"init must be a plain transformer, got a model with 1 stage\(s\)"):
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
    assert plan.modules["ffn"] == tuple(
        layer for layer in (1, 2, 3, 4) for _ in range(config.num_ffn_modules // 4)
    )
    ids = tokens(2, 9)
    torch.testing.assert_close(
        upcycle(plain, config)(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "gpt2"}, "model.block must be llama, as in the model of init, got gpt2"),
        ({"qk_norm": True}, "model.qk_norm must be false, as in the model of init, got true"),
        ({"rope_theta": 5.0}, "model.rope_theta must be 10000.0, as in the model of init, got 5.0"),
        (
            {"tie_word_embeddings": False},
            "model.tie_word_embeddings must be true, as in the model of init, got false",
        ),
    ],
)
def test_upcycling_rejects_other_components(changes, message):
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0, block="llama")
    with pytest.raises(UsageError) as error:
        upcycle(plain, small_config(**({"block": "llama"} | changes)))
    assert str(error.value).startswith(message)


def test_an_untied_head_is_upcycled_too():
    fields = {"block": "llama", "tie_word_embeddings": False}
    plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0, **fields)
    mom = upcycle(plain, small_config(**fields))
    assert torch.equal(mom.lm_head.weight, plain.lm_head.weight)
    assert not torch.equal(mom.lm_head.weight, mom.model.embedding.token.weight)


def test_modules_of_other_kinds_start_fresh():
    with causal_conv():
        config = small_config(pools=THREE_POOLS)
        plain = small_model(num_stages=0, num_bottom_blocks=6, num_top_blocks=0)
        assert plain_config(config).num_bottom_blocks == 6
        stage = upcycle(plain, config).model.stages[0]
    assert torch.equal(stage.ffn.pool.fc_weight[1], plain.model.bottom[2].ffn.fc.weight.T)
    assert 0 < float(stage.causal_conv.pool.kernel_weight.detach().std()) < 0.1
