"""What a transformers user expects of every head, in memory, saved and loaded, and from an exported folder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification, MoMModel
from mom.model.outputs import MoMCausalLMOutput, MoMSequenceClassifierOutput
from tests.helpers.hugging_face import PLACES, placed
from tests.helpers.models import small_config, small_model, tokens

HEADS = {"model": MoMModel, "lm": MoMForCausalLM, "classifier": MoMForSequenceClassification}


def head(kind: str, **changes):
    """Return a head in evaluation mode on the body of :func:`small_model`."""
    model = small_model(**changes)
    if kind == "lm":
        return model
    if kind == "model":
        return model.model.eval()
    torch.manual_seed(1)
    classifier = MoMForSequenceClassification(model.config).eval()
    classifier.model.load_state_dict(model.model.state_dict())
    torch.nn.init.normal_(classifier.score.weight, std=0.5)
    return classifier


@pytest.fixture(params=PLACES)
def place(request, tmp_path, monkeypatch):
    """Put a model in a place."""
    return lambda model: placed(model, request.param, tmp_path / "folder", monkeypatch)


blocks = pytest.mark.parametrize("block", ["gpt2", "llama"])
kinds = pytest.mark.parametrize("kind", list(HEADS))


def first(output) -> torch.Tensor:
    """Return the hidden states of the base model, or the logits of a head."""
    return output.last_hidden_state if "last_hidden_state" in output else output.logits


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@blocks
def test_the_loss_of_a_language_model_is_divided_by_the_items_of_all_its_batches(block, place):
    """The auxiliary losses weigh as much as the tokens they come with."""
    model = place(small_model(block=block, balance_coefficient=0.1))
    ids, labels = tokens(4, 9), tokens(4, 9)
    labels[0, 3:] = -100
    labels[3] = -100
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    counts = [int((labels[part, 1:] != -100).sum()) for part in parts]
    total = torch.tensor(sum(counts))
    for items in (total, int(total), total[None, None]):
        output = [model(input_ids=ids[part], labels=labels[part], num_items_in_batch=items) for part in parts]
        alone = [model(input_ids=ids[part], labels=labels[part]) for part in parts]
        expected = sum(count * float(one.loss) for count, one in zip(counts, alone, strict=True) if count)
        assert float(sum(one.loss for one in output)) == pytest.approx(expected / int(total), rel=1e-5)
        assert float(output[2].loss) == float(output[2].lm_loss) == 0
        assert float(output[0].balance_loss) == float(alone[0].balance_loss)
    whole = model(input_ids=ids, labels=labels).lm_loss
    assert float(sum(one.lm_loss for one in output)) == pytest.approx(float(whole), rel=1e-5)
    gradients = torch.autograd.grad(sum(one.lm_loss for one in output), model.parameters(), allow_unused=True)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(whole, model.parameters(), allow_unused=True), strict=True
    ):
        if ours is not None:
            assert_close(ours, theirs)


@pytest.mark.parametrize(
    "problem", ["regression", "single_label_classification", "multi_label_classification"]
)
@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("declared", [True, False])
@blocks
def test_the_loss_of_a_classifier_is_that_of_its_problem(problem, num_labels, declared, block, place):
    if num_labels == 1 and problem == "single_label_classification":
        pytest.skip("transformers refuses this configuration")
    if not declared and (problem == "regression") != (num_labels == 1):
        pytest.skip("found out from one label, and only then")
    fields = {"num_labels": num_labels, "problem_type": problem if declared else None, "block": block}
    model = place(head("classifier", **fields))
    ids, mask = tokens(4, 6), torch.ones(4, 6, dtype=torch.long)
    mask[1, 4:] = 0
    shape = (4,) if num_labels == 1 else (4, num_labels)
    labels = {
        "regression": torch.randn(shape),
        "single_label_classification": torch.tensor([0, 2, 1, 1]),
        "multi_label_classification": torch.randint(2, shape).float(),
    }[problem]
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    logits = output.logits if num_labels > 1 else output.logits.squeeze(-1)
    loss = {
        "regression": F.mse_loss,
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
    }[problem](logits, labels)
    assert_close(output.task_loss, loss)
    parts = [
        model(
            input_ids=ids[rows],
            attention_mask=mask[rows],
            labels=labels[rows],
            num_items_in_batch=labels.numel(),
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert_close(sum(part.task_loss for part in parts), loss)
    shares = [1 / 4, 3 / 4]
    for part, share in zip(parts, shares, strict=True):
        assert_close(part.loss, part.task_loss + share * 0.01 * part.balance_loss)


@kinds
@pytest.mark.parametrize(("block", "skipped_kv"), [("gpt2", "zero"), ("gpt2", "mask"), ("llama", "mask")])
def test_sequences_packed_in_a_row_do_not_see_each_other(kind, block, skipped_kv, place):
    if kind == "classifier":
        pytest.skip("it has one prediction per row")
    model = place(head(kind, block=block, skipped_kv=skipped_kv).double())
    parts = [tokens(1, length, seed=length) for length in (4, 1, 6)]
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    packed = first(model(input_ids=torch.cat(parts, dim=1), position_ids=positions))
    assert_close(packed, torch.cat([first(model(input_ids=part)) for part in parts], dim=1))
    several = first(
        model(input_ids=torch.cat(parts, dim=1).repeat(2, 1), position_ids=positions, use_cache=False)
    )
    assert_close(several, packed.repeat(2, 1, 1))


@pytest.mark.usefixtures("causal_conv")
def test_a_pool_that_streams_refuses_packed_sequences():
    model = small_model(pools=["attention", "causal_conv", "ffn"])
    ids = tokens(1, 6)
    model(input_ids=ids, position_ids=torch.arange(6)[None], use_cache=False)
    with pytest.raises(
        ValueError, match="position_ids must not start anew within a row: the pool causal_conv"
    ):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)


@kinds
@pytest.mark.parametrize(("block", "skipped_kv"), [("gpt2", "zero"), ("gpt2", "mask"), ("llama", "mask")])
def test_eager_attention_and_masks_of_every_form_give_the_same(kind, block, skipped_kv, place):
    model = place(head(kind, block=block, skipped_kv=skipped_kv))
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    plain = first(model(input_ids=ids, attention_mask=mask))
    causal = torch.ones(6, 6, dtype=torch.bool).tril() & mask[:, None, None, :].bool()  # (B, 1, T, T)
    added = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    real = mask.bool() if kind != "classifier" else slice(None)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert_close(first(model(input_ids=ids, attention_mask=mask))[real], plain[real])
        if kind == "classifier":
            continue
        for form in (causal, causal.long(), added, added.masked_fill(~causal, -torch.inf)):
            output = model(input_ids=ids, attention_mask=form, position_ids=positions)
            assert_close(first(output)[real], plain[real])
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[B, T\] or \[B, 1, T, T_key\]"):
        model(input_ids=ids, attention_mask=torch.ones(2, 6, 6))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_may_bias_scores_and_hide_a_tokens_own_key(implementation):
    """As in transformers' own models."""
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            attn_implementation=implementation,
        )
    ).eval()
    from mom.interop import from_llama

    ours, ids = from_llama(theirs), tokens(1, 6)
    ours.set_attn_implementation(implementation)
    bias = torch.randn(1, 1, 6, 6).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    bias[:, :, 2:].diagonal(2, dim1=-2, dim2=-1).fill_(-torch.inf)
    assert_close(
        ours(input_ids=ids, attention_mask=bias).logits, theirs(input_ids=ids, attention_mask=bias).logits
    )


@kinds
@blocks
def test_hidden_states_end_with_the_norm_and_attentions_are_those_that_ran(kind, block, place):
    model = place(head(kind, block=block))
    ids = tokens(2, 5)
    mask = torch.ones_like(ids)
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    if kind == "model":
        assert output.hidden_states[-1] is output.last_hidden_state
    elif kind == "lm":
        assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    else:
        assert_close(model.score(output.hidden_states[-1][:, -1]), output.logits)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert model(input_ids=ids, attention_mask=mask).attentions is None
        found = model(input_ids=ids, attention_mask=mask, output_attentions=True)
        assert_close(first(found), first(output))
        assert len(found.attentions) == model.config.num_attentions
        for weights in found.attentions:
            assert weights.shape == (2, 2, 5, 5)
            assert_close(weights.sum(-1), torch.ones(2, 2, 5))
            assert not weights.triu(1).any()


@kinds
@blocks
def test_the_configuration_says_what_is_returned(kind, block, place):
    model = place(head(kind, block=block))
    ids = tokens(2, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = model(**inputs)
    assert plain.hidden_states is None
    assert (plain.past_key_values is None) == (kind == "classifier")
    assert model(**inputs, use_cache=True).past_key_values is not None
    assert model(**inputs, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(**inputs).past_key_values is None
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == 8
    assert isinstance(model(**inputs, return_dict=False), tuple)
    model.config.return_dict = False
    output = model(**inputs)
    assert isinstance(output, tuple) and torch.equal(output[0], first(plain))
    if kind != "model":
        labels = ids if kind == "lm" else ids[:, 0] % 2
        loss, logits = model(**inputs, labels=labels)[:2]
        assert loss.ndim == 0 and torch.equal(logits, first(plain))


@kinds
def test_keywords_that_nothing_reads_are_refused(kind, place):
    model = place(head(kind))
    with pytest.raises(TypeError, match="output_rooting"):
        model(input_ids=tokens(1, 4), output_rooting=True)


def test_labels_may_be_shifted_by_the_caller(place):
    model = place(small_model())
    ids, labels = tokens(2, 7), tokens(2, 7, seed=1)
    labels[0, 4:] = -100
    expected = model(input_ids=ids, labels=labels)
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    for given in ({"shift_labels": shifted}, {"labels": ids, "shift_labels": shifted}):
        output = model(input_ids=ids, **given)
        assert_close(output.loss, expected.loss)
        assert_close(output.lm_loss, expected.lm_loss)


@kinds
@blocks
def test_positions_that_do_not_exist_are_refused_on_every_path(kind, block, place):
    model = place(head(kind, block=block, max_positions=8))
    ids, message = tokens(2, 9), r"at most max_positions \(8\) tokens, got 9"
    mask = torch.ones_like(ids)
    padded = mask.clone()
    padded[:, 0] = 0
    last = torch.arange(9)[None]
    for given in ({}, {"attention_mask": mask}, {"position_ids": last}):
        if kind == "classifier" and not given:
            continue
        with pytest.raises(ValueError, match=message):
            model(input_ids=ids, **given)
    model(input_ids=ids, attention_mask=padded)  # 8 real tokens
    cache = model(input_ids=ids[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
    if kind == "classifier":
        return
    for given in ({}, {"attention_mask": mask}, {"position_ids": torch.tensor([[8]])}):
        with pytest.raises(ValueError, match=message):
            model(input_ids=ids[:, 8:], past_key_values=cache, **given)
    if kind == "lm":
        for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
            with pytest.raises(ValueError, match=message):
                model.generate(ids[:, :4], max_new_tokens=6, do_sample=False, pad_token_id=0, **options)


@kinds
@blocks
def test_sizes_follow_a_configuration_that_changes(kind, block, tmp_path):
    config = small_config(block=block)
    assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == (7, 2, 8)
    assert config.hidden_act == {"gpt2": "gelu_pytorch_tanh", "llama": "silu"}[block]
    assert config.intermediate_size == config.ffn_width
    config.num_rounds, config.intermediate_size, config.hidden_size = 6, 20, 32
    assert (config.num_hidden_layers, config.d_ffn, config.head_dim) == (9, 20, 16)
    assert config.to_dict()["num_hidden_layers"] == 9
    with pytest.raises(ValueError, match="num_hidden_layers must be 9, which follows from"):
        config.num_hidden_layers = 3
    HEADS[kind](config).save_pretrained(tmp_path)
    changed = HEADS[kind].from_pretrained(tmp_path, num_rounds=3)
    assert changed.config.num_hidden_layers == 6
    ids = tokens(1, 4)
    assert first(changed.eval()(input_ids=ids)).isfinite().all()
    if kind == "lm":
        assert changed.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 6)
    config.top_k = 99
    with pytest.raises(ValueError, match="top_k must be between 1 and 4"):
        HEADS[kind](config)
    with pytest.raises(ValueError, match="top_k must be between 1 and 4"):
        HEADS[kind].from_pretrained(tmp_path, top_k=99)


def test_the_width_of_a_hidden_router_follows_d_model():
    config = small_config(router_dim=None)
    config.d_model = 32
    (weight,) = {layer.router.output.weight.shape[1] for layer in [MoMModel(config).stages[0].ffn]}
    assert weight == 16


def test_only_predictions_reach_compute_metrics():
    for output in (MoMCausalLMOutput, MoMSequenceClassifierOutput):
        names = set(output.__dataclass_fields__) - set(MoMConfig.keys_to_ignore_at_inference)
        assert names == {"loss", "logits", "hidden_states", "attentions"}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_activation_checkpointing_as_transformers_configures_it(reentrant, every, place):
    ids, results = tokens(2, 8), []
    for checkpointing in (False, True):
        model = place(small_model(balance_coefficient=0.1)).train()
        model.zero_grad()
        if checkpointing:
            model.activation_checkpointing_enable(
                every_n_layers=every, activation_checkpointing_kwargs={"use_reentrant": reentrant}
            )
            with pytest.raises(ValueError, match="use_cache must be false in training with activation"):
                model(input_ids=ids, use_cache=True)
        output = model(input_ids=ids, labels=ids, output_routing=True)
        output.loss.backward()
        results.append([output.loss.detach(), *(p.grad.clone() for p in model.parameters())])
        assert len(output.routing) == model.config.num_rounds
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_a_classifier_continues_from_a_cache():
    model, ids = head("classifier"), tokens(1, 6)
    cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    assert_close(model(input_ids=ids[:, 4:], past_key_values=cache).logits, model(input_ids=ids).logits)
