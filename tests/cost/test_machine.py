"""Matmul rates, peak memory, and keeping freed memory."""

from __future__ import annotations

import os
import subprocess
import sys
import typing

import pytest
import torch
from lightning.fabric.connector import _convert_precision_to_unified_args
from lightning.fabric.utilities import throughput

from mom.config.training import Precision
from mom.cost import machine as measurement
from mom.cost.machine import (
    matmul_dtype,
    matmul_rate,
    peak_flops,
    peak_memory,
    unified_precision,
    weight_dtype,
)


def test_the_peak_is_what_exists_at_the_same_time():
    def work() -> None:
        first = torch.empty(1000, 500)  # 2 MB
        second = first + 1  # 4 MB
        del first
        third = second * 2  # 4 MB
        del second, third

    assert peak_memory(work, "cpu") == pytest.approx(4e6, rel=1e-3)


def test_a_backward_pass_counts_too():
    x = torch.ones(1000, 1000, requires_grad=True)
    # The product is kept for backward; the gradient comes on top.
    assert peak_memory(lambda: (x * 2).exp().sum().backward(), "cpu") >= 8e6
    x.grad = None
    assert peak_memory(lambda: (x.detach() * 2).sum(), "cpu") == pytest.approx(4e6, rel=1e-3)


def test_an_unknown_device_is_measured(monkeypatch):
    rate, source = peak_flops(torch.device("cpu"), torch.float32)
    assert rate == matmul_rate("cpu", torch.float32) > 1e8
    assert source == "measured with a matmul"
    monkeypatch.setattr(throughput, "get_available_flops", lambda device, dtype: 5)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == (5.0, "manufacturer's figure")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
        (64, torch.float64),
    ],
)
def test_the_precision_sets_the_dtype_of_matmuls(precision, dtype):
    assert matmul_dtype(precision) is dtype


@pytest.mark.filterwarnings("ignore:.*is supported for historical reasons")
@pytest.mark.parametrize("precision", typing.get_args(Precision))
def test_aliases_of_a_precision_mean_what_they_mean_to_lightning(precision):
    name = unified_precision(precision)
    assert name == _convert_precision_to_unified_args(precision)
    assert matmul_dtype(precision) is matmul_dtype(name)
    assert weight_dtype(precision) is (torch.float32 if name.endswith("-mixed") else matmul_dtype(name))


KEEPING = """
from mom.cost.machine import keep_freed_memory
def returned():
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096
    block = b"x" * (1 << 24)  # 16 MiB
    high = resident()
    del block
    return high - resident() > 1 << 23
print(returned(), keep_freed_memory(), returned())
"""


def test_freed_memory_is_kept_with_glibc():
    if not os.path.exists("/proc/self/statm") or measurement.platform.libc_ver()[0] != "glibc":
        assert measurement.keep_freed_memory() is False
        return
    run = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True", "False"]


def test_without_glibc_it_has_no_effect(monkeypatch):
    monkeypatch.setattr(measurement.sys, "platform", "darwin")
    assert measurement.keep_freed_memory() is False
