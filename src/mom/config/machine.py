"""Check what a request asks of this machine: its devices, the number of processes, and the precision on its CPU."""

from __future__ import annotations

import functools
import os
import time

from mom.config.launcher import JoblibConfig, LauncherConfig
from mom.config.text_data import DataConfig, DataSection
from mom.config.training import TrainerConfig
from mom.errors import UsageError, as_written, either, unknown_choice

_PER_CORE, _LEAST = 4, 16
_SLOWEST = 8.0
"""How many times slower than in float32 a product may be."""


def check_machine(trainer: TrainerConfig, data: DataSection) -> None:
    """Check that this machine has the trainer's devices, and that the request does not start too many processes on it.

    Raises:
        UsageError: for the first option that does not suit it.
    """
    _check_number("data.num_workers", data.num_workers)
    if isinstance(data, DataConfig):
        _check_number("data.num_processes", data.num_processes)
    _check_devices(trainer)


def check_parallel_jobs(launcher: LauncherConfig) -> None:
    """Reject more parallel jobs than this machine can run.

    Raises:
        UsageError: ``launcher.num_workers`` is too large.
    """
    if isinstance(launcher, JoblibConfig):
        _check_number("launcher.num_workers", launcher.num_workers)


def most_processes() -> int:
    """Return how many processes of a kind may run here: four for each core, and at least 16."""
    return max(_LEAST, _PER_CORE * (os.cpu_count() or 1))


def _check_number(option: str, number: int | None) -> None:
    if number is not None and number > most_processes():
        cores = os.cpu_count() or 1
        here = f"this machine of {cores} core{'s' * (cores > 1)}"
        raise UsageError(f"{option} must be at most {most_processes()} on {here}, got {number}")


def _check_devices(trainer: TrainerConfig) -> None:
    """Reject an accelerator that this machine lacks, or more devices than it has."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    # The other strategies copy this process, with its open files and locks.
    copies = ("spawn", "fork", "notebook")
    found = (name for name in StrategyRegistry.available_strategies() if not any(map(name.count, copies)))
    strategies = sorted({"auto", *found})
    if trainer.strategy not in strategies:
        raise unknown_choice("trainer.strategy", trainer.strategy, strategies)
    present = [
        kind for kind in ("cuda", "mps", "tpu") if AcceleratorRegistry[kind]["accelerator"].is_available()
    ]
    name: str = "cuda" if trainer.accelerator == "gpu" else trainer.accelerator
    if name == "auto":
        name = present[0] if present else "cpu"
    if name == "cpu":
        _check_processes_on_cpu(trainer)
        _check_speed(trainer)
        return
    if name not in present and not (trainer.accelerator == "gpu" and "mps" in present):
        raise UsageError(
            f"trainer.accelerator must be {either(['auto', 'cpu', *present])} on this machine, "
            f"got {trainer.accelerator}"
        )
    count = AcceleratorRegistry[name]["accelerator"].auto_device_count() if name in present else 1
    if isinstance(trainer.devices, int) and trainer.devices > count:
        raise UsageError(
            f"trainer.devices must be at most {count}, the number on this machine, or -1 for all, "
            f"got {trainer.devices}"
        )


def _check_processes_on_cpu(trainer: TrainerConfig) -> None:
    """Reject numbers of processes that Lightning does not take for a CPU, or that would exhaust it."""
    given = trainer.devices
    number = int(given) if isinstance(given, str) and given.isdigit() else given
    if number == "auto":
        return
    if not isinstance(number, int) or not 1 <= number <= most_processes():
        raise UsageError(
            f"trainer.devices must be auto or between 1 and {most_processes()} on the CPU, got {as_written(given)}"
        )


def _check_speed(trainer: TrainerConfig) -> None:
    """Reject a precision that this CPU has no instructions for, so that PyTorch multiplies number by number."""
    kind = {"16-true": "float16", "bf16-true": "bfloat16"}.get(str(trainer.precision))
    if kind is not None and (times := _slowdown(kind)) > _SLOWEST:
        raise UsageError(
            f"trainer.precision={trainer.precision} requires a GPU: this CPU multiplies matrices {times:.0f} times "
            f"slower in {kind} than in float32; choose 32-true"
        )


@functools.cache
def _slowdown(kind: str) -> float:
    """Return how many times longer a product of matrices takes in a type than in float32, the best of three each."""
    import torch

    fastest = []
    for dtype in (torch.float32, getattr(torch, kind)):
        matrix = torch.ones(256, 256, dtype=dtype)
        seconds = []
        for _ in range(4):  # the first is slower
            start = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - start)
        fastest.append(min(seconds))
    return fastest[1] / fastest[0]
