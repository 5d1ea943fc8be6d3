"""Facts: every answer follows from the facts alone, and held-out compositions stay out of training."""

from __future__ import annotations

import pytest
import torch

from mom.data.controls.control import IGNORED
from mom.data.controls.facts import Facts
from mom.errors import UsageError


def chain(control: Facts, row: list[int]) -> tuple[int, list[int], int]:
    """The entity, the relations without the identity, and the answer of a sequence."""
    *question, answer = row
    if control.order == "operand_last":
        question.reverse()
    entity, *relations = question
    identity = control.entities + control.relations
    return entity, [relation for relation in relations if relation != identity], answer


CONTROLS = [
    Facts(),
    Facts(order="operand_last", seed=3),
    Facts(hops=3, entities=8, relations=4, held_out_fraction=0.5),
    Facts(hops=3, order="operand_last", entities=8, relations=4, never_composed_fraction=0.3),
]


@pytest.mark.parametrize("control", CONTROLS)
def test_answers_are_the_composition_of_single_facts(control: Facts) -> None:
    examples = control.validation()
    rows = [chain(control, row) for row in examples.input_ids.tolist()]
    table = {(entity, relations[0]): answer for entity, relations, answer in rows if len(relations) == 1}

    assert len(table) == control.entities * control.relations
    for entity, relations, answer in rows:
        for relation in relations:
            entity = table[entity, relation]
        assert entity == answer


@pytest.mark.parametrize("control", CONTROLS)
def test_each_bucket_holds_what_it_says(control: Facts) -> None:
    trained, validation = control.training(), control.validation()
    seen = {tuple(row) for row in trained.input_ids.tolist()}
    rows = {
        tuple(row): control.buckets[index]
        for row, index in zip(validation.input_ids.tolist(), validation.bucket, strict=True)
    }
    composed = set()
    table = {}
    for row in validation.input_ids.tolist():
        entity, relations, answer = chain(control, row)
        if len(relations) == 1:
            table[entity, relations[0]] = answer

    def facts(row: tuple[int, ...]) -> list[tuple[int, int]]:
        entity, relations, _ = chain(control, list(row))
        found = []
        for relation in relations:
            found.append((entity, relation))
            entity = table[entity, relation]
        return found

    for row in seen:
        if len(facts(row)) == control.hops:
            composed |= set(facts(row))
    assert set(rows.values()) == set(control.buckets)
    assert control.headline in control.buckets
    for row, bucket in rows.items():
        trains = bucket == f"hop{control.hops}_seen" or len(facts(row)) < control.hops
        assert (row in seen) == trains
        lone = [fact not in composed for fact in facts(row)]
        if bucket == "never_composed":
            assert all(lone)
        if bucket == "partly_never_composed":
            assert any(lone)
    total = sum(control.entities * control.relations**hops for hops in range(1, control.hops + 1))
    assert len(rows) == total
    assert set(trained.bucket.tolist()) == {0}


def test_only_the_answer_is_a_label() -> None:
    examples = Facts().training()

    assert (examples.labels[:, :-1] == IGNORED).all()
    assert torch.equal(examples.labels[:, -1], examples.input_ids[:, -1])
    assert examples.input_ids.max() < Facts().vocab_size
    assert examples.input_ids.shape[1] == Facts().sequence_length
    assert examples.labels[:, -1].max() < Facts().entities


def test_the_same_options_give_the_same_examples() -> None:
    one, other, another = Facts(), Facts(), Facts(seed=1)

    assert torch.equal(one.training().input_ids, other.training().input_ids)
    assert not torch.equal(one.validation().input_ids, another.validation().input_ids)


def test_without_facts_that_are_never_composed_there_is_no_such_bucket() -> None:
    control = Facts(never_composed_fraction=0)

    assert control.buckets == ("hop1", "hop2_seen", "hop2_held_out")
    assert control.validation().bucket.bincount().tolist()[0] == 24 * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hops": 4}, r"^data\.hops must be between 2 and 3, got 4$"),
        ({"order": "first"}, r"^data\.order must be operand_first or operand_last, got first"),
        (
            {"held_out_fraction": 1.0},
            r"^data\.held_out_fraction must be greater than 0 and less than 1, got 1\.0$",
        ),
        ({"name": "rules"}, r"^data\.name must be facts, got rules"),
    ],
)
def test_invalid_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Facts(**options)
