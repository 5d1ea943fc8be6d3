"""Measure this machine: its matmul rate, and the peak memory of a function."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_SIZES = {"cpu": 2048, "cuda": 8192}


@functools.cache
def matmul_rate(device_type: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Measure the FLOP/s of a large matmul, the best of three; later calls return the same number.

    ``size`` is the number of rows and columns; by default 2048 on the CPU (a fraction of a second) and 8192 on a GPU.
    """
    size = size or _SIZES.get(device_type, 4096)
    left = torch.ones(size, size, dtype=dtype, device=device_type)
    right = torch.ones_like(left)
    out = torch.empty_like(left)
    seconds = []
    for _ in range(4):
        synchronize(device_type)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronize(device_type)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the device's peak FLOP/s and the source of that number.

    Known GPUs are in Lightning's table of manufacturers' figures; for other devices a matmul is timed.

    Returns:
        FLOP/s, and ``"manufacturer's figure"`` or ``"measured with a matmul"``.
    """
    if device.type in ("cuda", "xla"):
        # Here, because Lightning takes a second to import.
        from lightning.fabric.utilities.throughput import get_available_flops

        known = get_available_flops(device, dtype)
        if known is not None:
            return float(known), "manufacturer's figure"
    return matmul_rate(device.type, dtype), "measured with a matmul"


_PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def unified_precision(precision: str | int) -> str:
    """Return the name that Lightning gives a ``trainer.precision``, such as ``bf16-mixed`` for its alias ``bf16``."""
    return _PRECISIONS.get(str(precision), str(precision))


def is_mixed(precision: str | int) -> bool:
    """Return whether weights stay in float32 under a ``trainer.precision``, while autocast runs matmuls in 16 bits."""
    return unified_precision(precision).endswith("-mixed")


def matmul_dtype(precision: str | int) -> torch.dtype:
    """Return the dtype of matmuls under a ``trainer.precision``."""
    bits = unified_precision(precision).partition("-")[0]
    return {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(bits, torch.float32)


def weight_dtype(precision: str | int) -> torch.dtype:
    """Return the dtype of the parameters under a ``trainer.precision``."""
    return torch.float32 if is_mixed(precision) else matmul_dtype(precision)


def synchronize(device_type: str) -> None:
    """Wait until the device has finished; no effect on the CPU."""
    if device_type == "cuda":
        torch.cuda.synchronize()


def peak_memory(work: Callable[[], object], device_type: str) -> int:
    """Measure the peak memory of the tensors that ``work`` allocates, in bytes.

    On a GPU this reads PyTorch's own statistics. On the CPU it adds up all allocations and releases that PyTorch's
    allocator reports, so neither other processes nor memory retained by the C library count. Scratch memory of BLAS
    libraries is not included.
    """
    if device_type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for later use instead of returning it to the kernel.

    By default glibc returns every large block, and the kernel clears each page before reusing it; a training step on
    the CPU allocates the same gigabytes again and again. Results do not change. The process stays at its peak memory
    until it exits.

    Returns:
        Whether it took effect, which requires Linux with glibc.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena: the backward pass runs in its own thread and must find the memory that the forward pass freed.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
