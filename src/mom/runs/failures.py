"""Failures of a run that its user can do something about, told from errors of this program."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from mom.errors import RunFailed, UsageError, first_line

_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.")
_WORKER_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)")
_NO_MEMORY = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn known failures into errors of one line.

    Raises:
        RunFailed: a process that loads batches was killed, or memory is exhausted.
        UsageError: a process that loads batches raised it; PyTorch adds its traceback to the message.
    """
    try:
        yield
    except Exception as error:
        if (known := _known(error)) is None:
            raise
        raise known from error


def _known(error: Exception) -> Exception | None:
    text = str(error)
    if isinstance(error, UsageError) and _IN_WORKER.match(text):
        return UsageError(text.strip().splitlines()[-1].partition(": ")[2])
    if isinstance(error, RuntimeError) and (died := _WORKER_DIED.match(first_line(error))):
        return RunFailed(
            f"a process that loads batches ({died[1]}) {died[2].rstrip('. ')}, perhaps for lack of memory; go on with "
            "resume=auto and the same run_dir, or with data.num_workers=0 to load batches in the training process"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_out_of_memory(error)):
        wanted = _NO_MEMORY.search(text)
        what = "" if wanted is None else f": cannot allocate {wanted[1]}"
        return RunFailed(
            f"out of memory{what}; a smaller model, a smaller data.batch_size with trainer.accumulate_grad_batches, or "
            "trainer.activation_checkpointing=true needs less"
        )
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch found no memory: ``torch.OutOfMemoryError`` on a GPU, a plain error on the CPU."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or "can't allocate memory" in str(error)
