"""What this machine does: its matrix-product rate, and the memory that a piece of work needs at its peak."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import time
from collections.abc import Callable

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.profiler import ProfilerActivity, profile

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_SIZES = {"cpu": 2048, "cuda": 8192}


@functools.cache
def matmul_rate(device_type: str, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations per second of one large matrix product, the best of three; measured once.

    Args:
        device_type: ``cpu``, ``cuda``, ….
        dtype: of both factors.
        size: rows and columns; by default 2048 on the CPU (a fraction of a second) and 8192 on a GPU.
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
    """What a device can do at most in a second, and where that number is from.

    Known GPUs come from Lightning's table of makers' numbers; for anything else a matrix product is timed.

    Returns:
        FLOP/s and ``"the maker's figure"`` or ``"measured by a matrix product"``.
    """
    if device.type in ("cuda", "xla"):
        known = get_available_flops(device, dtype)
        if known is not None:
            return float(known), "the maker's figure"
    return matmul_rate(device.type, dtype), "measured by a matrix product"


def product_dtype_of(precision: str | int) -> torch.dtype:
    """The dtype of matrix products under a ``trainer.precision``."""
    name = str(precision)
    if name.startswith("bf16"):
        return torch.bfloat16
    return {"16": torch.float16, "64": torch.float64}.get(name.partition("-")[0], torch.float32)


def synchronize(device_type: str) -> None:
    """Wait until the device has done what it was given; nothing on the CPU."""
    if device_type == "cuda":
        torch.cuda.synchronize()


def peak_memory(work: Callable[[], object], device_type: str) -> int:
    """Bytes that tensors take at the peak of ``work``, beyond those that are there before.

    On a GPU PyTorch's own statistics; on the CPU a tally of every allocation and release that PyTorch's
    allocator reports, so neither other processes nor what the C library keeps back is in it. Scratch memory
    that libraries of matrix products take for themselves is not seen.
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
    changes = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda one: one.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def keep_freed_memory() -> bool:
    """Keep the memory that is freed in this process for the next use, in the place of giving it back.

    By default glibc returns every large block to the kernel, which has to clear each page before it hands it
    out again; a training step on the CPU asks for the same gigabytes over and over. No effect on results. The
    process holds its peak until it ends.

    Returns:
        Whether it took effect: only on Linux with glibc.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena: the backward pass runs in a thread of its own and must find what the forward freed.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
