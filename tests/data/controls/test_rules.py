"""Rules: labels follow from the tables, tokens tell nothing about the rule, and held-out sequences are not trained."""

from __future__ import annotations

import pytest
import torch

from mom.data.controls.control import IGNORED
from mom.data.controls.rules import Rules
from mom.errors import UsageError

CONTROLS = [
    Rules(training_examples=20_000),
    Rules(rules=3, steps=2, symbols=8, markers=7, seed=1, training_examples=5000),
    Rules(rules=2, steps=1, symbols=40, markers=2, training_examples=5000),
]


def chain(control: Rules, row: list[int]) -> tuple[int, ...]:
    """The symbol and the rules of a sequence."""
    markers, (symbol, *rest) = row[: control.steps], row[control.steps :]
    following, end = control.vocab_size - 2, control.vocab_size - 1
    assert rest == [following] * (control.steps - 1) + [end]
    assert all(control.symbols <= marker < following for marker in markers)
    return symbol, *((marker - control.symbols) % control.rules for marker in markers)


@pytest.mark.parametrize("control", CONTROLS)
def test_labels_and_choices_follow_from_the_markers(control: Rules) -> None:
    tables = control.tables.tolist()
    for examples, all_steps in ((control.training(), True), (control.validation(), False)):
        assert examples.choices is not None
        parts = examples.input_ids, examples.labels, examples.choices["ffn"]
        for ids, labels, choices in zip(*(part[::17].tolist() for part in parts), strict=True):
            value, *rules = chain(control, ids)
            values = []
            for rule in rules:
                value = tables[rule][value]
                values.append(value)
            if not all_steps:
                values[:-1] = [IGNORED] * (control.steps - 1)
            assert labels == [IGNORED] * (control.steps + 1) + values
            assert choices == [-1] * control.steps + rules + [-1]
    assert all(sorted(table) == list(range(control.symbols)) for table in tables)


@pytest.mark.parametrize("control", CONTROLS)
def test_held_out_sequences_are_not_trained(control: Rules) -> None:
    validation = control.validation()
    trained = {chain(control, row) for row in control.training().input_ids.tolist()}

    assert validation.bucket.bincount().tolist() == [control.validation_examples] * 2
    for row, bucket in zip(validation.input_ids.tolist(), validation.bucket.tolist(), strict=True):
        assert (chain(control, row) in trained) == (control.buckets[bucket] == "seen")
    total = control.symbols * control.rules**control.steps
    assert len(trained) / total == pytest.approx(1 - control.held_out_fraction, abs=0.15)


def test_every_rule_applies_to_every_symbol_and_every_marker_is_trained() -> None:
    control = CONTROLS[0]
    examples = control.training()
    first = {chain(control, row)[:2] for row in examples.input_ids.tolist()}

    assert len(first) == control.symbols * control.rules
    markers = examples.input_ids[:, : control.steps]
    assert (markers.flatten().bincount()[control.symbols :] > 0).tolist() == [True] * control.markers


def test_the_token_at_hand_does_not_tell_the_rule() -> None:
    control = CONTROLS[0]
    examples = control.training()
    assert examples.choices is not None

    for position in range(control.steps, 2 * control.steps):
        tokens, rules = examples.input_ids[:, position], examples.choices["ffn"][:, position]
        joint = torch.zeros(control.vocab_size, control.rules)
        joint.index_put_((tokens, rules), torch.ones(len(tokens)), accumulate=True)
        assert joint.amax(1).sum() / joint.sum() < 1 / control.rules + 0.1


def test_shapes_and_chance() -> None:
    control = CONTROLS[0]
    examples = control.training()

    assert examples.input_ids.shape == (20_000, control.sequence_length)
    assert examples.input_ids.max() == control.vocab_size - 1
    assert control.chance == 1 / 32
    assert control.headline in control.buckets


def test_the_same_options_give_the_same_examples() -> None:
    small = {"training_examples": 100}

    assert torch.equal(Rules(**small).training().input_ids, Rules(**small).training().input_ids)
    assert not torch.equal(Rules().tables, Rules(seed=1).tables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": 1}, r"^data\.rules must be between 2 and 1,000, got 1$"),
        ({"markers": 3}, r"^data\.markers must be between 4 and 10,000, got 3$"),
        (
            {"held_out_fraction": 1},
            r"^data\.held_out_fraction must be greater than 0 and less than 1, got 1\.0$",
        ),
    ],
)
def test_invalid_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rules(**options)


def test_a_split_without_sequences_is_an_error() -> None:
    control = Rules(rules=2, steps=1, symbols=2, markers=2, held_out_fraction=1e-6)

    with pytest.raises(
        UsageError, match=r"^data\.held_out_fraction must be larger: nothing is left for validation"
    ):
        control.validation()
