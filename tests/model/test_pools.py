"""All ways to run a pool agree: sorted by module, all modules for all tokens, or those of a single token one by one."""

from __future__ import annotations

import pytest
import torch

from mom.model.dispatch import even_groups
from mom.model.pools import pool, rows
from mom.model.pools.rows import choice_table, sum_modules
from tests.helpers.models import small_model, tokens

VARIANTS = [
    {},
    {"weight_qkv": True},
    {"top_k": 1, "normalize_weights": False},
    {"top_k": "all"},
    {"skip_rule": "first", "skipped_kv": "mask"},
    {"num_attention_modules": 2, "num_ffn_modules": 5, "router": "mlp"},
    {"schedule": "layerwise"},
    {"block": "llama"},
    {"pools": ["shared_kv_attention", "ffn"]},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("folds", [False, True])
def test_running_every_module_gives_what_sorting_by_module_gives(changes, folds, monkeypatch):
    monkeypatch.setattr(pool, "worth_folding", lambda *_: folds)
    model, ids = small_model(**changes).eval(), tokens(2, 8)
    outputs = {}
    for bound in (0, 10**6):
        monkeypatch.setattr(rows, "ALL_MODULES_MAX_TOKENS", bound)
        with torch.no_grad():
            outputs[bound] = model(input_ids=ids, output_routing=True)
    assert torch.equal(outputs[0].routing[-1].ffn.selected, outputs[10**6].routing[-1].ffn.selected)
    assert not torch.equal(outputs[0].logits, outputs[10**6].logits)  # both ways were used
    torch.testing.assert_close(outputs[10**6].logits, outputs[0].logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("folds", [False, True])
def test_running_modules_one_by_one_gives_what_sorting_gives(changes, folds, monkeypatch):
    monkeypatch.setattr(pool, "worth_folding", lambda *_: folds)
    model, ids = small_model(**changes).eval(), tokens(1, 9)
    expected = model(input_ids=ids).logits[:, 1:]  # with gradients, so sorted
    cache, found, ways = None, [], set()
    kinds = {kind: kind.__init__ for kind in (rows.SingleRows, rows.SortedRows)}
    for kind, initialize in kinds.items():
        monkeypatch.setattr(
            kind, "__init__", lambda self, *a, f=initialize, k=kind: (ways.add(k), f(self, *a))[1]
        )
    with torch.no_grad():
        for token in ids.unbind(1):
            output = model(input_ids=token[:, None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    assert ways == {rows.SingleRows}
    torch.testing.assert_close(torch.cat(found, dim=1)[:, 1:], expected, atol=1e-5, rtol=1e-4)


def test_modules_run_one_by_one_only_for_one_token_on_the_cpu_without_gradients():
    one = torch.zeros(1, 4)
    assert not rows.should_run_one_by_one(one)
    with torch.no_grad():
        assert rows.should_run_one_by_one(one)
        assert not rows.should_run_one_by_one(torch.zeros(2, 4))
        assert not rows.should_run_one_by_one(one.to("meta"))
        with even_groups():
            assert not rows.should_run_one_by_one(one)


def test_every_module_runs_only_without_gradients_for_few_tokens_and_few_weights():
    few, small = rows.ALL_MODULES_MAX_TOKENS, rows.ALL_MODULES_MAX_WEIGHTS
    assert not rows.should_run_all_modules(few, small)
    with torch.no_grad():
        assert rows.should_run_all_modules(few, small)
        assert not rows.should_run_all_modules(few + 1, small)
        assert not rows.should_run_all_modules(few, small + 1)


def test_sum_of_modules_against_a_loop():
    torch.manual_seed(0)
    selected = torch.tensor([[[0, 2], [3, 3]], [[1, 3], [2, 1]]])  # 3 is SKIP
    values = torch.rand(2, 2, 2)
    weight, bias, rows = torch.randn(3, 4, 5), torch.randn(3, 5), torch.randn(4, 3, 4)
    expected = torch.zeros(4, 5)
    for token, (choices, shares) in enumerate(zip(selected.flatten(0, 1), values.flatten(0, 1), strict=True)):
        for module, share in zip(choices.tolist(), shares, strict=True):
            if module < 3:
                expected[token] += share * (rows[token, module] @ weight[module] + bias[module])
    table = choice_table(selected, values, 3)
    torch.testing.assert_close(sum_modules(rows, table, weight, bias), expected)
