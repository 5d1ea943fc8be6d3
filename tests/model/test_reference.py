"""The model, compared with the reference: logits, routing, and the gradient of every parameter."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

import mom.model.pools.pool
from mom.model.reference import ReferenceMoM
from tests.helpers.models import settle_randomly, small_model, tokens

LLAMA = [
    {"block": "llama"},
    {"block": "llama", "qk_norm": True, "tie_word_embeddings": False},
    {"block": "llama", "qk_norm": True, "weight_qkv": True, "top_k": 1, "skipped_kv": "mask"},
    {"block": "llama", "num_stages": 0, "d_ffn": 20, "rope_theta": 100.0},
    {"qk_norm": True, "top_k": "all"},
]
GRID = [
    {"router": router, "top_k": top_k, "skipped_kv": skipped, "skip_rule": rule}
    for router, top_k, skipped, rule in product(
        ("gru", "mlp", "linear", "embedding", "sequential", "random"),
        (1, 2),
        ("zero", "mask"),
        ("share", "first"),
    )
] + [
    {"top_k": 3},
    {"top_k": "all"},
    {"top_k": "all", "weight_qkv": True, "skipped_kv": "mask"},
    {"top_k": "all", "schedule": "layerwise"},
    {"top_k": "all", "schedule": "layerwise", "router": "random"},
    {"top_k": "all", "schedule": "layerwise", "router": "random", "skip": False, "skipped_kv": "mask"},
    {"top_k": "all", "schedule": "grouped", "num_attention_modules": 4, "num_rounds": 2, "skip": False},
    {"weight_qkv": True},
    {"normalize_weights": False},
    {"top_k": 1, "normalize_weights": True},
    {"schedule": "layerwise", "skipped_kv": "mask"},
    {"schedule": "layerwise", "skip": False, "top_k": 1},
    {"schedule": "grouped", "num_attention_modules": 4, "num_ffn_modules": 6, "num_rounds": 2},
    {"schedule": "layerwise", "skip": False, "top_k": 1, "ffn_schedule": "all", "ffn_skip": True},
    {"num_stages": 2, "anchors": False, "num_rounds": 2},
    {"num_attention_modules": 2, "num_ffn_modules": 5, "d_ffn": 24},
    {"router_prior": "ordered", "router_prior_strength": 1.0},
    {"router_prior": "looped", "router_prior_strength": 0.5, "num_rounds": 5},
    {"router_prior": "hashed", "router_prior_strength": 2.0},
    {"router_prior": "hashed", "top_k": 1, "router": "linear", "settle_steps": 1},
    {"router_prior": "hashed", "schedule": "grouped", "num_attention_modules": 3, "num_rounds": 2},
    {"balance_bias_rate": 0.1},
    {"balance_bias_rate": 0.1, "skip_rule": "first", "schedule": "grouped", "num_rounds": 2},
    *({"settle_steps": 1, "top_k": 1, "router": router} for router in ("linear", "embedding", "gru")),
    {
        "settle_steps": 1,
        "top_k": 1,
        "skip": False,
        "schedule": "grouped",
        "num_rounds": 2,
        "balance_bias_rate": 0.1,
    },
    {"temperature": 1e-3},
    {"temperature": 1e-3, "top_k": 3, "balance_bias_rate": 0.1},
    {"num_stages": 0, "num_bottom_blocks": 3},
    {"ffn_top_k": 1},
    {"top_k": 1, "ffn_top_k": 3, "skip_rule": "first"},
    {"top_k": 1, "ffn_top_k": 2, "ffn_schedule": "grouped", "num_ffn_modules": 6, "num_rounds": 2},
    {"top_k": 1, "absorbing_skip": True},
    {"top_k": 1, "absorbing_skip": True, "schedule": "layerwise", "ffn_skip": False, "skipped_kv": "mask"},
    {"top_k": 2, "absorbing_skip": True, "skip_rule": "first", "num_stages": 2},
    {"top_k": 1, "absorbing_skip": True, "router": "random", "skipped_kv": "mask"},
    {"top_k": 1, "absorbing_skip": True, "router": "linear", "skip": False, "ffn_skip": True},
    {"pools": ["ffn", "attention"]},
    {
        "pools": {
            "wide": {"kind": "ffn", "num_modules": 4, "top_k": 1, "skip": False, "d_ffn": 80},
            "attention": {},
            "ffn": {},
        }
    },
    {"pools": ["ffn"], "router": "random", "num_stages": 2, "top_k": 1, "absorbing_skip": True},
    *LLAMA,
]
EXPERT_CHOICE = [
    {"capacity": 0.5, "router": "linear", "top_k": 1, "schedule": "layerwise", "skipped_kv": "mask"},
    {
        "capacity": 0.25,
        "top_k": 1,
        "num_stages": 2,
        "num_rounds": 2,
        "absorbing_skip": True,
        "ffn_skip": False,
    },
    {"capacity": 0.4, "top_k": 1, "router": "mlp", "absorbing_skip": True},
    {"capacity": 0.3, "top_k": "all"},
    {"capacity": 0.6, "top_k": 2, "skip_rule": "first", "temperature": 0.2},
    {"pools": {"attention": {"skip": False, "top_k": 1}, "ffn": {"capacity": 0.7}}, "schedule": "grouped"},
]


@pytest.mark.parametrize(
    ("changes", "fold"),
    [(changes, True) for changes in GRID] + [(changes, False) for changes in (*GRID[::5], *LLAMA)],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else f"fold={given}",
)
def test_equals_reference_in_value_and_every_gradient(changes, fold, monkeypatch):
    # Norms are folded into the weights or applied to rows, whichever is cheaper; both must match.
    monkeypatch.setattr(mom.model.pools.pool, "worth_folding", lambda *_: fold)
    model = small_model(**changes)
    settle_randomly(model)
    assert_equals_the_reference(model)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changes", EXPERT_CHOICE, ids=str)
def test_expert_choice_equals_reference_in_value_and_every_gradient(changes, training):
    assert_equals_the_reference(small_model(**changes).train(training))


def assert_equals_the_reference(model):
    ids = tokens(2, 7)
    output = model(input_ids=ids, labels=ids, output_routing=True)
    output.lm_loss.backward()
    fast = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.zero_grad()
    reference = ReferenceMoM.from_model(model)
    references = [reference(row) for row in ids]
    logits = torch.stack([logits for logits, _ in references])
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()

    torch.testing.assert_close(output.logits, logits, atol=2e-5, rtol=1e-4)
    steps = [step for decisions in output.routing for step in decisions]
    for row, (_, rounds) in enumerate(references):
        record = [choices for decisions in rounds for choices in decisions.values()]
        assert len(record) == len(steps)
        for step, choices in zip(steps, record, strict=True):
            scores = torch.stack([choice.scores for choice in choices])
            torch.testing.assert_close(step.scores[row], scores, atol=1e-5, rtol=1e-4)
            assert step.selected[row].tolist() == [choice.selected for choice in choices]
            weights = torch.stack([choice.weights for choice in choices])
            torch.testing.assert_close(step.weights[row], weights, atol=1e-5, rtol=1e-4)
    for name, parameter in model.named_parameters():
        slow = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            fast[name], slow, atol=1e-5 + 1e-4 * float(slow.abs().max()), rtol=0, msg=name
        )


@pytest.mark.parametrize(
    ("router", "block"),
    [(router, "gpt2") for router in ("gru", "mlp", "linear", "embedding", "sequential", "random")]
    + [(router, "llama") for router in ("gru", "random")],
)
@pytest.mark.parametrize("skipped_kv", ["zero", "mask"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_reference_of_the_unpadded(router, skipped_kv, side, block):
    model = small_model(router=router, skipped_kv=skipped_kv, top_k=1, block=block)
    lengths, longest = (4, 8, 6), 8
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        at = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = tokens(1, length, seed=row)[0], 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    reference = ReferenceMoM.from_model(model)
    for row in range(3):
        expected, _ = reference(ids[row][mask[row].bool()])
        torch.testing.assert_close(logits[row][mask[row].bool()], expected, atol=2e-5, rtol=1e-4)


def plain_balance_loss(choices: list, include_skip: bool) -> torch.Tensor:
    """Return n · Σ f P over the n options of a pool, for the choices of all tokens in all rounds of a stage."""
    probability = torch.stack([choice.scores for choice in choices]).sum(0)
    n = len(probability) - (not include_skip)
    chosen = [i for choice in choices for i in choice.selected if i < n]
    frequency = torch.tensor([chosen.count(i) / len(chosen) for i in range(n)])
    return n * (frequency * probability[:n] / probability[:n].sum()).sum()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"balance_skip": False, "num_stages": 2},
        {"schedule": "layerwise", "top_k": 1, "absorbing_skip": True},
        {"router": "random"},
        {"num_stages": 0},
    ],
    ids=str,
)
def test_training_loss_equals_the_reference_in_value_and_every_gradient(changes):
    model = small_model(balance_coefficient=0.5, **changes)
    ids = tokens(2, 7)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    fast = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    reference = ReferenceMoM.from_model(model)
    outputs = [reference(row) for row in ids]
    logits = torch.stack([logits for logits, _ in outputs])
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for first in range(0, model.config.num_stages * 4, 4):
        for pool in ("attention", "ffn"):
            rounds = [r for _, routing in outputs for r in routing[first : first + 4]]
            choices = [choice for r in rounds for choice in r[pool]]
            expected = expected + 0.5 * plain_balance_loss(choices, model.config.balance_skip)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        slow = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            fast[name], slow, atol=1e-5 + 1e-4 * float(slow.abs().max()), rtol=0, msg=name
        )


@pytest.mark.parametrize(
    "changes", [{"score_function": "identity"}, {"straight_through": True}, {"ffn_skip_slots": 2}], ids=str
)
def test_options_of_the_authors_checkpoints_are_rejected(changes):
    with pytest.raises(ValueError, match="the reference needs softmax scores, one SKIP output"):
        ReferenceMoM.from_model(small_model(**changes))
