"""Arithmetic: every answer is the value of its expression, and held-out and deeper ones stay out of training."""

from __future__ import annotations

import operator

import pytest
import torch

from mom.data.controls.arithmetic import OPERATIONS, Arithmetic, evaluate
from mom.data.controls.control import IGNORED
from mom.errors import UsageError

CONTROLS = [
    Arithmetic(training_examples=20_000),
    Arithmetic(modulus=3, trained_depth=3, deepest=5, held_out_fraction=0.5, seed=2, training_examples=5000),
    Arithmetic(trained_depth=1, deepest=1, training_examples=2000),
]


def value(tokens: list[int], modulus: int) -> int:
    """Consume an expression in prefix notation from the front and return its value."""
    token = tokens.pop(0)
    if token < modulus:
        return token
    apply = {"+": operator.add, "-": operator.sub, "*": operator.mul}[OPERATIONS[token - modulus]]
    left = value(tokens, modulus)
    return apply(left, value(tokens, modulus)) % modulus


def expression(control: Arithmetic, row: list[int]) -> tuple[int, ...]:
    """The tokens of a sequence's expression, without blanks."""
    *tokens, equals, _ = row
    assert equals == control.vocab_size - 2
    return tuple(token for token in tokens if token != control.vocab_size - 1)


@pytest.mark.parametrize("control", CONTROLS)
def test_answers_are_the_values_of_the_expressions(control: Arithmetic) -> None:
    for examples in (control.training(), control.validation()):
        for row in examples.input_ids[::17].tolist():
            tokens = list(expression(control, row))
            assert value(tokens, control.modulus) == row[-1]
            assert not tokens


@pytest.mark.parametrize("control", CONTROLS)
def test_validation_expressions_of_two_or_more_operations_are_not_trained(control: Arithmetic) -> None:
    training, validation = control.training(), control.validation()
    trained = {expression(control, row) for row in training.input_ids.tolist()}

    assert {len(tokens) // 2 for tokens in trained} == set(range(1, control.trained_depth + 1))
    assert validation.bucket.bincount().tolist() == [control.validation_examples] * control.deepest
    for row, bucket in zip(validation.input_ids.tolist(), validation.bucket.tolist(), strict=True):
        tokens = expression(control, row)
        assert control.buckets[bucket] == f"depth{len(tokens) // 2}"
        assert len(tokens) == 3 or tokens not in trained


def test_the_rest_of_an_expression_is_on_either_side() -> None:
    control = Arithmetic(trained_depth=2, deepest=2, training_examples=10_000)
    expressions = [expression(control, row) for row in control.training().input_ids.tolist()]
    right = [tokens[2] >= control.modulus for tokens in expressions if len(tokens) == 5]

    assert sum(right) / len(right) == pytest.approx(0.5, abs=0.02)


def test_expressions_in_prefix_notation() -> None:
    plus, minus, times = 5, 6, 7

    assert evaluate(torch.tensor([[plus, 3, times, minus, 1, 4, 2]]), 5).tolist() == [2]
    assert evaluate(torch.tensor([[minus, 1, 2], [minus, 2, 1]]), 5).tolist() == [4, 1]
    assert evaluate(torch.tensor([[3]]), 5).tolist() == [3]


def test_only_the_answer_is_a_label() -> None:
    control = Arithmetic()
    examples = control.training()

    assert examples.input_ids.shape == (control.training_examples, control.sequence_length)
    assert examples.input_ids.max() == control.vocab_size - 1
    assert (examples.labels[:, :-1] == IGNORED).all()
    assert torch.equal(examples.labels[:, -1], examples.input_ids[:, -1])
    assert not examples.bucket.any()
    assert control.chance == 1 / 5
    assert control.headline == "depth3"


def test_the_same_options_give_the_same_examples() -> None:
    assert torch.equal(Arithmetic().training().input_ids, Arithmetic().training().input_ids)
    assert not torch.equal(Arithmetic().training().input_ids, Arithmetic(seed=1).training().input_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained_depth": 3, "deepest": 2}, r"^data\.deepest must be between 3 and 50, got 2$"),
        ({"modulus": 1}, r"^data\.modulus must be between 2 and 1,000, got 1$"),
        (
            {"held_out_fraction": 0.0},
            r"^data\.held_out_fraction must be greater than 0 and less than 1, got 0\.0$",
        ),
    ],
)
def test_invalid_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Arithmetic(**options)
