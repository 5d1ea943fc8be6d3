"""Invariants of all models: causality, independence of rows and padding, caching, gradients, saving."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.model import MoMForCausalLM, MoMForSequenceClassification
from tests.helpers.models import small_config, small_model, tokens

ROUTERS = ("gru", "mlp", "linear", "embedding", "sequential", "random")
VARIANTS = [
    {"router": router, "skipped_kv": skipped, "skip_rule": rule, "top_k": top_k}
    for router, skipped, (rule, top_k) in product(
        ROUTERS, ("zero", "mask"), (("share", 1), ("share", 2), ("first", 2))
    )
] + [
    {"block": "llama", "skipped_kv": "zero", "top_k": 2},
    {"block": "llama", "skipped_kv": "mask", "top_k": 1, "qk_norm": True},
]


def name_of(changes: dict) -> str:
    return "-".join(map(str, changes.values()))


@pytest.mark.parametrize("changes", VARIANTS, ids=name_of)
def test_later_tokens_never_change_earlier_logits(changes):
    model = small_model(**changes)
    ids = tokens(2, 12)
    other = ids.clone()
    other[:, 7:] = tokens(2, 5, seed=9)
    torch.testing.assert_close(model(input_ids=ids).logits[:, :7], model(input_ids=other).logits[:, :7])


@pytest.mark.parametrize("changes", VARIANTS, ids=name_of)
def test_a_batch_equals_its_rows(changes):
    model = small_model(**changes)
    ids = tokens(5, 10)
    rows = torch.cat([model(input_ids=row[None]).logits for row in ids])
    torch.testing.assert_close(model(input_ids=ids).logits, rows, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS, ids=name_of)
def test_cached_decoding_equals_the_full_forward_token_by_token(changes):
    model = small_model(**changes)
    ids = tokens(3, 12)
    full = model(input_ids=ids).logits
    output = model(input_ids=ids[:, :5], use_cache=True)
    logits = [output.logits]
    for position in range(5, 12):
        output = model(
            input_ids=ids[:, position : position + 1], past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-5, rtol=1e-4)
    assert len(output.past_key_values.layers) == model.config.graph_depth


@pytest.mark.parametrize("changes", VARIANTS, ids=name_of)
def test_cached_decoding_of_a_left_padded_batch_equals_the_unpadded(changes):
    model = small_model(**changes)
    lengths = (3, 6)
    ids, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = tokens(1, length, seed=row)[0], 1
    more = tokens(2, 4, seed=5)
    output = model(input_ids=ids, attention_mask=mask, use_cache=True)
    for step in range(4):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        output = model(
            input_ids=more[:, step : step + 1],
            attention_mask=mask,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row, -length:], more[row]])[None]
        torch.testing.assert_close(
            output.logits[row, -1], model(input_ids=alone).logits[0, -1], atol=1e-5, rtol=1e-4
        )


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    skipped_kv=st.sampled_from(["zero", "mask"]),
    seed=st.integers(0, 3),
)
def test_padding_on_either_side_changes_nothing(lengths, side, skipped_kv, seed):
    model = small_model(seed=seed, skipped_kv=skipped_kv)
    longest = max(lengths)
    ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        at = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = tokens(1, length, seed=row)[0], 1
        labels[row, at] = ids[row, at]
    output = model(input_ids=ids, attention_mask=mask, labels=labels, output_routing=True)
    for row in range(len(lengths)):
        real = mask[row].bool()
        alone = model(input_ids=ids[row][real][None], output_routing=True)
        torch.testing.assert_close(output.logits[row][real], alone.logits[0], atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(output.routing, alone.routing, strict=True):
            assert torch.equal(ours.ffn.selected[row][real], theirs.ffn.selected[0])


def test_generation_greedy_sampled_and_by_beam_search():
    model = small_model(skipped_kv="mask")
    ids = tokens(2, 5)
    greedy = model.generate(ids, max_new_tokens=6, do_sample=False)
    by_hand = ids
    for _ in range(6):
        by_hand = torch.cat([by_hand, model(input_ids=by_hand).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(greedy, by_hand)

    beams = model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False)
    uncached = model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, uncached)

    def log_probability(sequence: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=sequence).logits[:, 4:-1].log_softmax(-1)
        return logits.gather(-1, sequence[:, 5:, None]).sum((1, 2))

    assert (log_probability(beams) >= log_probability(greedy) - 1e-4).all()

    torch.manual_seed(0)
    sampled = model.generate(ids, max_new_tokens=6, do_sample=True)
    torch.manual_seed(0)
    assert torch.equal(sampled, model.generate(ids, max_new_tokens=6, do_sample=True))
    assert (
        len({tuple(model.generate(ids[:1], max_new_tokens=6, do_sample=True)[0].tolist()) for _ in range(8)})
        > 1
    )


def test_sampling_ignores_the_routers_temperature_and_top_k(tmp_path):
    model = small_model(temperature=0.125, top_k=1)
    assert model.generation_config.temperature != 0.125 and model.generation_config.top_k != 1
    model.save_pretrained(tmp_path)
    loaded = MoMForCausalLM.from_pretrained(tmp_path).generation_config
    assert loaded.temperature != 0.125 and loaded.top_k != 1


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("router", ["gru", "mlp", "linear", "embedding"])
def test_the_router_learns_from_the_language_model_loss_alone(router, top_k):
    model = small_model(router=router, top_k=top_k, balance_coefficient=0.0)
    ids = tokens(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    for part in (model.model.stages[0].attention, model.model.stages[0].ffn):
        assert float(part.router.output.weight.grad.abs().max()) > 0


def test_every_module_gets_a_gradient_even_when_no_token_chose_it():
    model = small_model(top_k=1)
    with torch.no_grad():
        for part in (model.model.stages[0].attention, model.model.stages[0].ffn):
            part.router.output.weight.zero_()
            part.router.output.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    ids = tokens(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    pool = model.model.stages[0].ffn.pool
    assert float(pool.fc_weight.grad[0].abs().max()) > 0
    assert float(pool.fc_weight.grad[1:].abs().max()) == 0


def test_a_stage_that_skips_everything_returns_its_input():
    model = small_model(top_k=1)
    with torch.no_grad():
        for part in (model.model.stages[0].attention, model.model.stages[0].ffn):
            part.router.output.weight.zero_()
            part.router.output.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 99.0]))
    ids = tokens(2, 8)
    output = model(input_ids=ids, labels=ids, output_hidden_states=True)
    before, *rounds = output.hidden_states[1 : 2 + model.config.num_rounds]
    for after in rounds:
        assert torch.equal(before, after)
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_saving_and_loading_keep_every_weight_and_the_function(tmp_path):
    model = small_model(router_prior="ordered", skipped_kv="mask", schedule="layerwise")
    with torch.no_grad():
        model.model.stages[0].ffn.router.prior.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = MoMForCausalLM.from_pretrained(tmp_path)
    ids = tokens(2, 8)
    assert torch.equal(model(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits)
    assert loaded.config.to_diff_dict() | {"_name_or_path": ""} == model.config.to_diff_dict() | {
        "_name_or_path": ""
    }
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_activation_checkpointing_changes_neither_values_nor_gradients_nor_records():
    ids = tokens(2, 8)
    results = []
    for checkpointing in (False, True):
        model = small_model(num_stages=2).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(input_ids=ids, labels=ids, output_routing=True)
        output.loss.backward()
        assert len(output.routing) == 2 * model.config.num_rounds
        results.append((output.loss, {name: p.grad for name, p in model.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, msg=name)


def test_too_long_and_missing_inputs_are_rejected():
    model = small_model()
    with pytest.raises(ValueError, match=r"at most max_positions \(32\) tokens, got 33"):
        model(input_ids=tokens(1, 33))
    with pytest.raises(ValueError, match="exactly one"):
        model()


@pytest.mark.parametrize("num_labels", [1, 3])
def test_the_classifier_reads_the_last_real_token(num_labels):
    torch.manual_seed(0)
    model = MoMForSequenceClassification(small_config(num_labels=num_labels, initializer_range=0.3)).eval()
    short, long = tokens(1, 5), tokens(1, 9, seed=1)
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    ids[0, :5], mask[0, :5], ids[1], mask[1] = short, 1, long, 1
    labels = torch.tensor([0.5, -1.0]) if num_labels == 1 else torch.tensor([2, 0])
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.logits[:1], model(input_ids=short).logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.logits[1:], model(input_ids=long).logits, atol=1e-5, rtol=1e-4)
    if num_labels == 1:
        torch.testing.assert_close(output.task_loss, ((output.logits[:, 0] - labels) ** 2).mean())
    else:
        torch.testing.assert_close(output.task_loss, -output.logits.log_softmax(-1)[[0, 1], labels].mean())
    with pytest.raises(ValueError, match="several sequences need an attention_mask"):
        model(input_ids=ids)
