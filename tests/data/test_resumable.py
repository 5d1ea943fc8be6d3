"""The order of training samples: a function of the seed, resumable anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mom.data.resumable import ResumableSampler
from mom.errors import UsageError


def in_batches(sampler: ResumableSampler) -> list[list[int]]:
    samples, size = list(sampler), sampler.batch_size
    assert len(samples) % size == 0
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def global_steps(
    num_samples: int, batch_size: int, world_size: int, seed: int = 0, state: dict[str, int] | None = None
) -> list[set[int]]:
    """Return the samples of all ranks in each remaining step of an epoch."""
    per_rank = []
    for rank in range(world_size):
        sampler = ResumableSampler(num_samples, batch_size, seed, rank, world_size)
        if state is not None:
            sampler.load_state_dict(state)
        per_rank.append(in_batches(sampler))
    assert len({len(batches) for batches in per_rank}) == 1
    steps = []
    for batches in zip(*per_rank, strict=True):
        flat = [sample for batch in batches for sample in batch]
        assert len(set(flat)) == len(flat) == batch_size * world_size
        steps.append(set(flat))
    return steps


@given(
    num_samples=st.integers(0, 80),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_ranks_together_see_the_samples_of_a_single_rank(
    num_samples: int, batch_size: int, world_size: int, seed: int
) -> None:
    together = global_steps(num_samples, batch_size, world_size, seed)
    assert together == global_steps(num_samples, batch_size * world_size, 1, seed)
    seen = [sample for step in together for sample in step]
    assert len(seen) == len(set(seen))
    assert 0 <= num_samples - len(seen) < batch_size * world_size


@given(st.data())
def test_resuming_anywhere_with_any_number_of_ranks(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 80))
    batch_size, world_size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    order = [next(iter(step)) for step in global_steps(num_samples, 1, 1)]
    sampler = ResumableSampler(num_samples, batch_size, 0, 0, world_size)
    # Two consecutive runs, each interrupted, the second with another number of ranks.
    steps = data.draw(st.integers(0, sampler.num_steps))
    state = sampler.state_after(steps)
    if state["epoch"] == 0:
        second = ResumableSampler(
            num_samples, data.draw(st.integers(1, 4)), 0, 0, data.draw(st.integers(1, 3))
        )
        second.load_state_dict(state)
        assert second.num_steps - len(in_batches(second)) == steps
        assert len(second) == second.num_steps * second.batch_size
        state = second.state_after(data.draw(st.integers(steps, second.num_steps)))
    if state["epoch"] == 0:
        consumed = state["samples_consumed"]
        assert consumed >= steps * batch_size * world_size
        left = global_steps(num_samples, batch_size, world_size, state=state)
        size = batch_size * world_size
        expected = order[consumed:]
        assert left == [set(expected[i : i + size]) for i in range(0, len(expected) - size + 1, size)]


def test_the_end_of_an_epoch_is_the_start_of_the_next() -> None:
    sampler = ResumableSampler(num_samples=11, batch_size=2, seed=3)
    for state in (sampler.state_after(5), sampler.state_after(2, last_step=2)):
        again = ResumableSampler(11, 2, 3)
        again.load_state_dict(state)
        fresh = ResumableSampler(11, 2, 3)
        fresh.set_epoch(1)
        assert list(again) == list(fresh)
        assert len(again) == len(fresh) == 10


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ResumableSampler(100, 10, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert order(1, 0) != order(0, 1)


def test_current_epoch_is_not_restarted() -> None:
    sampler = ResumableSampler(100, 10, 0)
    sampler.load_state_dict(sampler.state_after(4))
    left = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == left
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(sampler) == 100


def test_state_of_another_order_is_rejected() -> None:
    state = ResumableSampler(100, 10, seed=5).state_after(3)
    with pytest.raises(UsageError, match="seed must be 5 as in the checkpoint, got 6"):
        ResumableSampler(100, 10, seed=6).load_state_dict(state)
    with pytest.raises(UsageError, match="ckpt: it was trained on 100 samples, but the data has 99"):
        ResumableSampler(99, 10, seed=5).load_state_dict(state)
