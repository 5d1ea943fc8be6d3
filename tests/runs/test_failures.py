"""Known failures are told in one line: a process that loads batches, and no memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mom.errors import RunFailed, UsageError
from mom.runs.failures import explained


class Rows(Dataset[int]):
    """Rows, of which reading the second does something."""

    def __init__(self, does: Callable[[], None]) -> None:
        self.does = does

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        if index == 1:
            self.does()
        return index


def refuse() -> None:
    raise UsageError("cannot read data.path: a.bin must hold 3 tokens: it was changed")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ZeroDivisionError("a bug")


def load(does: Callable[[], None]) -> None:
    with explained():
        list(DataLoader(Rows(does), num_workers=1))


def test_what_a_process_that_loads_batches_refuses_is_told_without_its_traceback() -> None:
    with pytest.raises(
        UsageError, match=r"^cannot read data.path: a.bin must hold 3 tokens: it was changed$"
    ):
        load(refuse)


def test_a_killed_process_that_loads_batches_is_one_line() -> None:
    with pytest.raises(
        RunFailed, match=r"^a process that loads batches \(\d+\) .*; go on with resume=auto"
    ) as got:
        load(die)
    assert "\n" not in str(got.value)


def test_a_bug_in_a_process_that_loads_batches_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="Traceback"):
        load(fail)


@pytest.mark.parametrize(
    ("allocate", "amount"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), r": cannot allocate 1152921504606846976 bytes"),
        (lambda: bytearray(1 << 60), ""),
        (lambda: fail_on_a_gpu(), ": cannot allocate 20.00 GiB"),
    ],
    ids=["torch", "python", "gpu"],
)
def test_no_memory_is_one_line(allocate: Callable[[], object], amount: str) -> None:
    with (
        pytest.raises(
            RunFailed, match=rf"^out of memory{amount}; a smaller model, a smaller data.batch_size"
        ),
        explained(),
    ):
        allocate()


def fail_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
