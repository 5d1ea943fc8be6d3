"""The cache that appends in place, compared with the one that concatenates."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, DynamicLayer

from mom.model.cache import GrowingLayer, prepare
from tests.helpers.models import small_model, tokens

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90)),
        st.tuples(st.just("crop"), st.integers(1, 3)),
        st.tuples(st.just("reorder"), st.integers(0, 5)),
        st.tuples(st.just("repeat"), st.just(2)),
        st.tuples(st.just("select"), st.just(0)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


def apply(layer, operation: str, amount: int, batch: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    if operation == "append":
        new = torch.randn(2, batch, 3, amount, 4, generator=generator)
        keys, values = layer.update(*new)
        assert keys is layer.keys
        assert values is layer.values
    elif operation == "crop":
        layer.crop(-amount)
    elif operation == "reorder":
        layer.reorder_cache(torch.randint(batch, (batch,), generator=generator))
    elif operation == "repeat":
        layer.batch_repeat_interleave(amount)
    elif operation == "select":
        layer.batch_select_indices(torch.arange(batch))
    elif operation == "copy":
        return copy.deepcopy(layer)
    else:
        layer.reset()
    return layer


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_any_sequence_of_operations_equals_the_parent(operations):
    ours, theirs = GrowingLayer(), DynamicLayer()
    batch = 2
    for seed, (operation, amount) in enumerate([("append", 5), *operations]):
        if operation == "repeat" and (batch > 4 or not theirs.get_seq_length()):
            continue
        if operation == "crop" and theirs.get_seq_length() <= amount:
            continue
        ours = apply(ours, operation, amount, batch, seed)
        theirs = apply(theirs, operation, amount, batch, seed)
        if operation == "repeat":
            batch *= 2
        assert ours.get_seq_length() == theirs.get_seq_length()
        if theirs.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_appending_copies_no_earlier_token():
    layer = GrowingLayer()
    new = torch.ones(2, 1, 1, 1, 4)
    layer.update(*new)
    first = layer.keys.data_ptr()
    for _ in range(50):
        layer.update(*new)
    assert layer.keys.data_ptr() == first


def test_a_copy_does_not_write_into_the_original():
    layer = GrowingLayer()
    layer.update(*torch.zeros(2, 1, 1, 3, 4))
    other = copy.deepcopy(layer)
    layer.update(*torch.ones(2, 1, 1, 1, 4))
    other.update(*torch.full((2, 1, 1, 1, 4), 2.0))
    assert layer.keys[..., -1, :].eq(1).all()
    assert other.keys[..., -1, :].eq(2).all()


def test_gradients_pass_through_cached_keys():
    layer = GrowingLayer()
    first = torch.ones(1, 1, 2, 4, requires_grad=True)
    layer.update(first, first)
    keys, _ = layer.update(first * 2, first * 2)
    keys.sum().backward()
    assert torch.equal(first.grad, torch.full_like(first, 3.0))


def test_a_model_adds_it_only_to_an_empty_cache():
    model = small_model()
    ids = tokens(1, 6)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
        assert all(isinstance(layer, GrowingLayer) for layer in cache.layers)
        filled = DynamicCache(
            [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers], config=None
        )
        kept = list(filled.layers)
        rest = model(input_ids=ids[:, 3:], past_key_values=filled, use_cache=True).logits
    assert filled.layers == kept
    torch.testing.assert_close(rest, full[:, 3:], atol=1e-5, rtol=1e-4)
    prepare(filled, len(kept), len(kept))
    assert filled.layers == kept
