"""A third pool of a custom kind: causal depthwise convolutions, compared with a loop in all modes of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mom import MoMConfig, MoMForCausalLM
from mom.model.options import options_table
from tests.helpers.models import decoded_in_parts, small_config, small_model, tokens
from tests.model.test_balance import formula

POOLS = ["attention", "causal_conv", "ffn"]


pytestmark = pytest.mark.usefixtures("causal_conv")


def conv_model(**changes: Any) -> MoMForCausalLM:
    return small_model(**({"pools": POOLS, "num_stages": 2} | changes))


def convolved(model: MoMForCausalLM, x: torch.Tensor, routing: Any) -> torch.Tensor:
    """Return the update of a sequence by the first stage's convolutions, token by token and module by module."""
    pool = model.model.stages[0].causal_conv.pool
    size = pool.kernel_weight.shape[1]
    out = torch.zeros_like(x)
    for t in range(len(x)):
        for module, weight in zip(routing.selected[0, t].tolist(), routing.weights[0, t], strict=True):
            if module == pool.num_modules:
                continue
            mixed = pool.kernel_bias[module].clone()
            for back in range(min(size, t + 1)):
                normal = F.layer_norm(
                    x[t - back], x.shape[1:], pool.norm_weight[module], pool.norm_bias[module], 1e-5
                )
                mixed = mixed + pool.kernel_weight[module, size - 1 - back] * normal
            out[t] += weight * (F.silu(mixed) @ pool.out_weight[module] + pool.out_bias[module])
    return out


def test_it_computes_a_causal_depthwise_convolution() -> None:
    model = conv_model(pools=["causal_conv"], num_rounds=1, num_stages=1, anchors=False)
    output = model(input_ids=tokens(1, 9), output_routing=True, output_hidden_states=True)
    before, after = output.hidden_states[1][0], output.hidden_states[2][0]
    torch.testing.assert_close(
        after, before + convolved(model, before, output.routing[0].causal_conv), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("changes", [{}, {"block": "llama"}, {"skipped_kv": "mask", "top_k": 1}], ids=str)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward_pass(changes: dict[str, Any]) -> None:
    model, ids = conv_model(**changes), tokens(2, 12)
    torch.testing.assert_close(decoded_in_parts(model, ids), model(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_unpadded(side: str) -> None:
    model, lengths, longest = conv_model(), (3, 8, 6), 8
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        at = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = tokens(1, length, seed=row)[0], 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    for row in range(3):
        real = mask[row].bool()
        alone = model(input_ids=ids[row][real][None]).logits[0]
        torch.testing.assert_close(logits[row][real], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_beam_search_and_padded_prompts_need_no_cache() -> None:
    model = conv_model()
    ids = torch.cat([torch.zeros(1, 2, dtype=torch.long), tokens(1, 5)], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(cached, model.generate(ids, attention_mask=mask, use_cache=False, **options))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    ids, found = tokens(2, 8), []
    for checkpointed in (False, True):
        model = conv_model().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    kernel = found[0]["model.stages.0.causal_conv.pool.kernel_weight"]
    assert kernel is not None and float(kernel.abs().max()) > 0


def test_no_logit_depends_on_a_later_token() -> None:
    model, ids = conv_model(), tokens(1, 10)
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 61
    logits, others = model(input_ids=ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(others[:, :6], logits[:, :6])
    assert not torch.equal(others[:, 6:], logits[:, 6:])


def test_it_is_saved_and_counted(tmp_path) -> None:
    specs = {
        "attention": None,
        "short": {"kind": "causal_conv", "num_modules": 2, "kernel_size": 2},
        "long": {"kind": "causal_conv", "num_modules": 5, "top_k": 1, "skip": False},
        "ffn": {"schedule": "layerwise", "top_k": 1},
    }
    model = conv_model(pools=specs)
    model.save_pretrained(tmp_path)
    again = MoMForCausalLM.from_pretrained(tmp_path)
    ids = tokens(1, 6)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)

    pools = again.config.pools()
    assert [(pool.name, pool.label, pool.num_modules, pool.top_k) for pool in pools] == [
        ("attention", "attention", 3, 2),
        ("short", "short", 2, 2),
        ("long", "long", 5, 1),
        ("ffn", "FFN", 3, 1),
    ]
    routing = model(input_ids=ids, output_routing=True).routing[0]
    assert routing._fields == ("attention", "short", "long", "ffn")
    for pool, name in zip(pools, routing._fields, strict=True):
        built = getattr(model.model.stages[0], name).pool
        counted = sum(parameter.numel() for parameter in built.parameters())
        assert counted == pool.num_modules * pool.kind.num_parameters(again.config)


def test_its_option_stands_in_the_table_of_options() -> None:
    assert (
        "| `model.pools.<name>.kernel_size` (causal_conv) | 4 | an integer of at least 1 |" in options_table()
    )


def test_every_step_has_a_layer_of_the_cache_to_itself() -> None:
    pools: dict[str, Any] = {
        "attention": {},
        "short": {"kind": "causal_conv"},
        "ffn": {},
        "again": {"kind": "attention"},
        "long": {"kind": "causal_conv"},
    }
    config = small_config(pools=pools, num_stages=2, num_rounds=3, num_bottom_blocks=2)
    steps = [
        layer
        for stage in range(2)
        for layout in config.pools()
        if layout.kind.attends or layout.kind.streams
        for layer in config.cache_layers(stage, layout)
    ]
    anchors = [config.anchor_layer(stage) for stage in range(2)]
    plain = [0, 1, config.num_attentions - 1]  # bottom and top
    assert sorted([*steps, *anchors, *plain]) == list(range(config.num_cache_layers))


def test_cached_decoding_with_two_pools_of_a_kind_equals_the_full_forward_pass() -> None:
    pools = ["attention", "causal_conv", "ffn"]
    twice = {f"{name}_{number}": {"kind": name} for number in (1, 2) for name in pools}
    model, ids = conv_model(pools=twice, num_rounds=2), tokens(2, 8)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        rest = model(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.logits, full[:, 5:], atol=2e-5, rtol=1e-4)


def test_random_routers_choose_differently_in_every_pool_of_every_stage() -> None:
    model = conv_model(router="random", top_k=1)
    with torch.no_grad():
        routing = model(input_ids=tokens(2, 16), output_routing=True).routing
    first = [step.selected for stage in (routing[0], routing[4]) for step in stage]
    assert not any(torch.equal(one, other) for i, one in enumerate(first) for other in first[:i])


def test_every_loss_counts_the_third_pool() -> None:
    model, ids = conv_model(top_k=1, depth_target=6.0), tokens(2, 8)
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids, output_routing=True)
    routing, config = output.routing, model.config
    stages, mask = (routing[:4], routing[4:]), torch.ones_like(ids)
    balance = sum(formula(stage, name, mask, True) for stage in stages for name in POOLS)
    assert float(output.balance_loss) == pytest.approx(balance, rel=1e-5)
    squares = torch.stack([step.logits.logsumexp(-1) ** 2 for decided in routing for step in decided])
    assert float(output.z_loss) == pytest.approx(float(squares.mean()), rel=1e-5)
    took = torch.stack([step.took_module for decided in routing for step in decided])
    depth = config.fixed_depth + float(took.sum()) / 3 / ids.numel()
    assert float(output.depth_loss) == pytest.approx(((depth - 6.0) / 8) ** 2, rel=1e-4)


def test_the_least_depth_counts_a_third_for_a_pool_that_may_skip() -> None:
    pools: dict[str, Any] = {"attention": {"skip": False}, "causal_conv": {"skip": False}, "ffn": {}}
    with pytest.raises(ValueError, match=r"^depth_target must be between 5\.66667 and 7, or null, got 5\.5$"):
        small_config(pools=pools, top_k=1, depth_target=5.5)
    small_config(pools=pools, top_k=1, depth_target=5.75)


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ([], "pools must name at least one pool, got"),
        (["attention", "attention"], "pools must name each kind once; write a mapping for two of a kind"),
        ([{"kind": "ffn"}], "pools must have names of lowercase letters"),
        (
            ["attn"],
            "pools.attn.kind must be one of attention, ffn, shared_kv_attention, causal_conv "
            "(did you mean attention?)",
        ),
        ({"anchor": {"kind": "ffn"}}, "pools must have names of lowercase letters"),
        ({"ffn": 3}, "pools.ffn must be a mapping, got 3"),
        ({"ffn": {"top": 1}}, "pools.ffn.top is not an option"),
        ({"ffn": {"top_k": 9}}, "pools.ffn.top_k must be between 1 and 5"),
        (
            {"c": {"kind": "causal_conv", "kernel_size": 0}},
            "pools.c.kernel_size must be an integer of at least 1",
        ),
        ({"ffn": {"num_modules": 0}}, "pools.ffn.num_modules must be an integer of at least 1, got 0"),
    ],
)
def test_invalid_pools_are_rejected(pools: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        MoMConfig(pools=pools)
    assert str(error.value).startswith(message)
