"""Table lookup: every answer follows from the tables, and held-out and longer chains stay out of training."""

from __future__ import annotations

import pytest
import torch

from mom.data.controls.control import IGNORED
from mom.data.controls.table_lookup import TableLookup
from mom.errors import UsageError

CONTROLS = [
    TableLookup(training_examples=20_000),
    TableLookup(order="operand_last", seed=3, training_examples=5000),
    TableLookup(
        symbols=5,
        functions=3,
        trained_chain=2,
        longest_chain=4,
        held_out_fraction=0.5,
        training_examples=5000,
    ),
    TableLookup(trained_chain=1, longest_chain=1, training_examples=2000),
]


def chain(control: TableLookup, row: list[int]) -> tuple[int, list[int], int]:
    """The symbol, the functions in the order in which they apply, and the answer of a sequence."""
    *question, answer = row
    if control.order == "operand_last":
        question.reverse()
    symbol, *slots = question
    nothing = control.vocab_size - 1
    return symbol, [slot - control.symbols for slot in slots if slot != nothing], answer


@pytest.mark.parametrize("control", CONTROLS)
def test_answers_follow_from_the_tables(control: TableLookup) -> None:
    tables = control.tables.tolist()
    for examples in (control.training(), control.validation()):
        for row in examples.input_ids[::17].tolist():
            value, functions, answer = chain(control, row)
            for function in functions:
                value = tables[function][value]
            assert value == answer
    assert all(sorted(table) == list(range(control.symbols)) for table in tables)


@pytest.mark.parametrize("control", CONTROLS)
def test_validation_chains_of_two_or_more_functions_are_not_trained(control: TableLookup) -> None:
    def questions(rows: torch.Tensor) -> list[tuple[int, ...]]:
        found = [chain(control, row) for row in rows.tolist()]
        return [(symbol, *functions) for symbol, functions, _ in found]

    training, validation = control.training(), control.validation()
    trained, validated = set(questions(training.input_ids)), questions(validation.input_ids)

    assert {len(question) - 1 for question in trained} == set(range(1, control.trained_chain + 1))
    assert validation.bucket.bincount().tolist() == [control.validation_examples] * control.longest_chain
    for question, bucket in zip(validated, validation.bucket.tolist(), strict=True):
        assert control.buckets[bucket] == f"length{len(question) - 1}"
        assert len(question) == 2 or question not in trained
    assert {question for question in trained if len(question) == 2} == {
        (symbol, function) for symbol in range(control.symbols) for function in range(control.functions)
    }


def test_only_the_answer_is_a_label() -> None:
    control = TableLookup()
    examples = control.training()

    assert examples.input_ids.shape == (control.training_examples, control.sequence_length)
    assert examples.input_ids.max() == control.vocab_size - 1
    assert (examples.labels[:, :-1] == IGNORED).all()
    assert torch.equal(examples.labels[:, -1], examples.input_ids[:, -1])
    assert not examples.bucket.any()
    assert control.chance == 1 / 8
    assert control.headline == "length4"


def test_training_uses_every_position_of_longer_chains() -> None:
    control = TableLookup()
    slots = control.training().input_ids[:, 1:-1]

    assert (slots < control.vocab_size - 1).any(dim=0).all()


def test_the_same_options_give_the_same_examples() -> None:
    assert torch.equal(TableLookup().training().input_ids, TableLookup().training().input_ids)
    assert not torch.equal(TableLookup().tables, TableLookup(seed=1).tables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained_chain": 3, "longest_chain": 2}, r"^data\.longest_chain must be between 3 and 100, got 2$"),
        ({"order": "first"}, r"^data\.order must be operand_first or operand_last, got first"),
        ({"symbols": 1}, r"^data\.symbols must be between 2 and 1,000, got 1$"),
    ],
)
def test_invalid_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TableLookup(**options)


def test_a_split_without_chains_is_an_error() -> None:
    control = TableLookup(symbols=2, functions=2, trained_chain=2, longest_chain=2, held_out_fraction=1e-6)

    with pytest.raises(
        UsageError, match=r"^data\.held_out_fraction must be larger: no chain of 2 functions is"
    ):
        control.validation()
