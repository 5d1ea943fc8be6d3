"""``generate`` in all its modes, against tokens chosen one by one without a cache."""

from __future__ import annotations

import pytest
import torch
from transformers import CompileConfig, DynamicCache, LogitsProcessorList, StaticCache
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from tests.helpers.hugging_face import placed
from tests.helpers.models import small_model, tokens

VARIANTS = {
    "gpt2": {},
    "llama": {"block": "llama"},
    "one choice, masked keys": {"top_k": 1, "skipped_kv": "mask"},
    "without SKIP": {"skip": False, "block": "llama", "qk_norm": True},
    "more attentions than layers": {"pools": {"attention": {}, "second": {"kind": "attention"}, "ffn": {}}},
    "fewer attentions than layers": {"pools": ["ffn"]},
    "early exit": {"top_k": 1, "absorbing_skip": True, "num_stages": 2},
}
LENGTH, PAD = 7, 60
OPTIONS = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "do_sample": False, "pad_token_id": PAD}


def prompts(batch: int, length: int = 5, seed: int = 0) -> torch.Tensor:
    """Return random prompts without the padding token, which ``generate`` would mask."""
    return tokens(batch, length, seed, vocab_size=PAD)


@pytest.fixture(params=list(VARIANTS))
def model(request):
    return small_model(**VARIANTS[request.param])


@torch.no_grad()
def by_hand(model, ids: torch.Tensor, length: int = LENGTH) -> torch.Tensor:
    """Append the most probable tokens without a cache."""
    for _ in range(length):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def test_greedy_decoding_with_every_cache(model):
    ids = prompts(2)
    expected = by_hand(model, ids)
    for options in (
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"past_key_values": DynamicCache(config=model.config)},
        {"past_key_values": StaticCache(config=model.config, max_cache_len=20)},
        {"prefill_chunk_size": 2},
    ):
        assert torch.equal(model.generate(ids, **OPTIONS, **options), expected), options


@pytest.mark.parametrize("variant", ["gpt2", "llama", "one choice, masked keys"])
@pytest.mark.parametrize("place", ["saved", "exported"])
def test_loaded_models_generate_the_same(variant, place, tmp_path, monkeypatch):
    model = small_model(**VARIANTS[variant])
    loaded = placed(model, place, tmp_path / "folder", monkeypatch)
    ids = prompts(2)
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 3}):
        assert torch.equal(
            loaded.generate(ids, **OPTIONS, **options), model.generate(ids, **OPTIONS, **options)
        )


@pytest.mark.parametrize("variant", ["llama", "one choice, masked keys"])
def test_a_static_cache_compiles_to_one_graph(variant):
    torch._dynamo.reset()
    model, ids = small_model(**VARIANTS[variant], num_rounds=2), prompts(2)
    compiling = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiling._compile_all_devices = True
    generated = model.generate(ids, **OPTIONS, cache_implementation="static", compile_config=compiling)
    assert torch.equal(generated, by_hand(model, ids))
    torch._dynamo.reset()


def test_left_padding_changes_nothing(model):
    rows = [prompts(1, 3, seed=3), prompts(1, 6, seed=6)]
    ids = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), rows[0]], dim=1), rows[1]])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    expected = [by_hand(model, row)[0, row.shape[1] :] for row in rows]
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
            generated = model.generate(ids, attention_mask=mask, **OPTIONS, **options)[:, 6:]
            for ours, theirs in zip(generated, expected, strict=True):
                assert torch.equal(ours, theirs), (implementation, options)


def test_beams_equal_those_without_a_cache(model):
    ids = prompts(2)
    options = OPTIONS | {"num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(ids, **options, use_cache=False)
    assert expected.shape == (4, 5 + LENGTH)
    assert torch.equal(model.generate(ids, **options), expected)
    assert torch.equal(model.generate(ids, **options, cache_implementation="static"), expected)


@pytest.mark.parametrize("variant", ["gpt2", "llama"])
def test_sampling_follows_the_probabilities(variant):
    model, ids = small_model(**VARIANTS[variant]), prompts(1)
    torch.manual_seed(0)
    options = OPTIONS | {"max_new_tokens": 1, "min_new_tokens": 1, "do_sample": True, "top_k": 0}
    samples = model.generate(ids, **options, num_return_sequences=4000)[:, -1]
    found = torch.bincount(samples, minlength=61) / 4000
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, -1].softmax(-1)
    assert float((found - expected).abs().max()) < 0.03


def test_assisted_decoding_equals_greedy_decoding(model):
    ids = prompts(1)
    expected = by_hand(model, ids)
    assistant = small_model(seed=1, num_stages=0)
    assert torch.equal(model.generate(ids, **OPTIONS, assistant_model=assistant), expected)
    assert torch.equal(model.generate(ids, **OPTIONS, prompt_lookup_num_tokens=2), expected)


def test_embeddings_instead_of_tokens(model):
    ids = prompts(2)
    embedded = model.get_input_embeddings()(ids)
    expected = by_hand(model, ids)
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert torch.equal(model.generate(inputs_embeds=embedded, **OPTIONS, **options), expected[:, 5:])
        assert torch.equal(model.generate(ids, inputs_embeds=embedded, **OPTIONS, **options), expected)


def test_going_on_from_a_cache(model):
    ids = prompts(2)
    expected = by_hand(model, ids)
    mask = torch.ones(2, 8, dtype=torch.long)
    first = model.generate(
        ids, **(OPTIONS | {"max_new_tokens": 3, "min_new_tokens": 3}), return_dict_in_generate=True
    )
    rest = OPTIONS | {"max_new_tokens": LENGTH - 3, "min_new_tokens": LENGTH - 3}
    assert torch.equal(
        model.generate(first.sequences, attention_mask=mask, past_key_values=first.past_key_values, **rest),
        expected,
    )


def test_scores_hidden_states_and_attentions_of_each_step(model):
    ids = prompts(1)
    flags = {"output_logits": True, "output_hidden_states": True, "output_attentions": True}
    found = model.generate(ids, **OPTIONS, **flags, return_dict_in_generate=True)
    with torch.no_grad():
        full = model(input_ids=found.sequences[:, :-1], output_hidden_states=True, output_attentions=True)
    for step in range(LENGTH):
        torch.testing.assert_close(found.logits[step], full.logits[:, 4 + step], atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(found.hidden_states[step], full.hidden_states, strict=True):
            torch.testing.assert_close(ours[:, -1], theirs[:, 4 + step], atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(found.attentions[step], full.attentions, strict=True):
            keys = slice(0, 5 + step)
            torch.testing.assert_close(ours[..., -1, :], theirs[:, :, 4 + step, keys], atol=1e-5, rtol=1e-4)


class AfterFour(StoppingCriteria):
    """Stop after four tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 9)


def test_stopping_criteria_end_tokens_and_processors():
    model, ids = small_model(), prompts(2)
    expected = by_hand(model, ids)
    options = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": PAD}
    stopped = model.generate(ids, **options, stopping_criteria=StoppingCriteriaList([AfterFour()]))
    assert torch.equal(stopped, expected[:, :9])
    end = int(expected[0, 7])
    ended = model.generate(ids[:1], **options, eos_token_id=end)[0]
    assert int(ended[-1]) == end and torch.equal(ended, expected[0, : len(ended)])

    def only_seven(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    forced = model.generate(ids, **options, logits_processor=LogitsProcessorList([only_seven]))
    assert bool((forced[:, 5:] == 7).all())


@pytest.mark.usefixtures("causal_conv")
def test_a_pool_that_streams_decodes_from_a_dynamic_cache_and_refuses_a_static_one():
    model, ids = small_model(pools=["attention", "causal_conv", "ffn"]), prompts(2)
    assert torch.equal(model.generate(ids, **OPTIONS), by_hand(model, ids))
    with pytest.raises(
        ValueError, match="past_key_values must be a dynamic cache for a model with a pool that"
    ):
        model.generate(ids, **OPTIONS, cache_implementation="static")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloaded caches need a GPU")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_offloaded_caches(cache):
    model, ids = small_model().cuda(), prompts(2).cuda()
    assert torch.equal(model.generate(ids, **OPTIONS, cache_implementation=cache), by_hand(model, ids))
