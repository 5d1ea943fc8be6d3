"""Pointer hops: answers are those of following the pointers one at a time."""

from __future__ import annotations

import itertools

import pytest
import torch

from mom.data.controls.control import IGNORED
from mom.data.controls.pointer_hops import PointerHops
from mom.errors import UsageError


def follow_slowly(symbols: list[int], hops: int, position: int) -> int:
    """The k-hop induction head at one position, as Sanford et al. define it."""
    for _ in range(hops):
        earlier = [other for other in range(position) if symbols[other] == symbols[position]]
        if not earlier:
            return IGNORED
        position = earlier[-1] + 1
    return symbols[position]


SMALL = PointerHops(context=20, training_examples=64, validation_examples=16)


def test_answers_follow_the_pointers() -> None:
    examples = SMALL.training()
    for row, labels in zip(examples.input_ids.tolist(), examples.labels.tolist(), strict=True):
        hops, symbols = row[0] - SMALL.symbols + 1, row[1:-1]
        assert labels[2:] == [follow_slowly(symbols, hops, position) for position in range(len(symbols))]
        assert labels[:2] == [IGNORED, IGNORED]
        assert row[-1] == labels[-1] != IGNORED
        assert all(one != other for one, other in itertools.pairwise(symbols))


def test_a_batch_mixes_hops_and_validation_has_a_bucket_for_each() -> None:
    trained, examples = SMALL.training(), SMALL.validation()
    hops = examples.input_ids[:, 0] - SMALL.symbols

    assert set((trained.input_ids[:, 0] - SMALL.symbols).tolist()) == set(range(SMALL.hops))
    assert torch.equal(hops, examples.bucket)
    assert examples.bucket.bincount().tolist() == [16] * SMALL.hops == [16] * len(SMALL.buckets)
    assert SMALL.headline == "hop4" == SMALL.buckets[-1]
    assert (examples.labels[:, :-1] == IGNORED).all() and (examples.labels[:, -1] != IGNORED).all()
    assert examples.input_ids.shape[1] == SMALL.sequence_length
    assert examples.input_ids.max() < SMALL.vocab_size


def test_hops_that_the_context_cannot_hold_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"^data\.hops must be smaller or data\.context larger"):
        PointerHops(context=4, symbols=50, hops=9, training_examples=1).training()
