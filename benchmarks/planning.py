"""Compare the plans of ``task=cost`` with measured training steps on the CPU: memory and time, one and two ranks.

    python -m benchmarks.planning                      # both, on a quiet machine
    python -m benchmarks.planning --measure memory     # valid beside other load

The "cluster" is this machine, with a thread for each rank: the rates of a matmul, of a copy, of a small operation, and
of an all-reduce over Gloo are measured first. Ranks train with DistributedDataParallel, as ``trainer=ddp`` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel

from mom.config import OptimizerConfig, TrainerConfig
from mom.config.cluster import ClusterConfig
from mom.cost.machine import keep_freed_memory, matmul_rate, peak_memory
from mom.cost.plan import Planner
from mom.model import MoMConfig, MoMForCausalLM
from mom.training.optimizer import build_optimizer

SIZES: dict[str, tuple[dict[str, Any], int, int]] = {
    "plain, 128": ({"d_model": 128, "num_stages": 0, "num_bottom_blocks": 6, "num_top_blocks": 0}, 8, 128),
    "mom, 128": ({"d_model": 128}, 8, 128),
    "mom, 256": ({"d_model": 256, "num_rounds": 6, "top_k": 2, "router": "gru"}, 4, 256),
    "plain, 384": ({"d_model": 384, "num_stages": 0, "num_bottom_blocks": 6, "num_top_blocks": 0}, 4, 256),
}
"""Options of the model, sequences of a rank, and tokens of a sequence."""

_WARM_UP = 2


def config_of(name: str) -> MoMConfig:
    """Return the configuration of a size."""
    return MoMConfig(vocab_size=4096, num_heads=4, max_positions=256, **SIZES[name][0])


def measure(rank: int, ranks: int, port: str, name: str, steps: int, results: str) -> None:
    """Train on random tokens; rank 0 writes the bytes of memory and the seconds of a step.

    Args:
        rank: this process's rank.
        ranks: number of processes.
        port: file that the processes meet by.
        name: a key of :data:`SIZES`.
        steps: timed steps; 0 measures memory.
        results: file for the result.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    _, batch, length = SIZES[name]
    model = MoMForCausalLM(config_of(name)).train()
    ids = torch.randint(model.config.vocab_size, (batch, length))
    if steps:
        keep_freed_memory()  # as the trainer does by default
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    seconds: list[float] = []

    def train(count: int) -> None:
        wrapped = DistributedDataParallel(model) if ranks > 1 else model
        adamw = build_optimizer(model, dataclasses.asdict(OptimizerConfig()), fused=True)
        for _ in range(count):
            start = time.perf_counter()
            wrapped(input_ids=ids, labels=ids, output_logits=False, output_routing=True).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()
            seconds.append(time.perf_counter() - start)

    if steps:
        train(_WARM_UP + steps)
        result = statistics.median(seconds[_WARM_UP:])
    else:
        result = weights + peak_memory(lambda: train(3), "cpu")
    if rank == 0:
        with open(results, "w", encoding="utf-8") as file:
            file.write(str(result))
    dist.barrier()
    dist.destroy_process_group()


def all_reduce_rate(rank: int, ranks: int, port: str, results: str) -> None:
    """Measure the bytes per second of a connection in an all-reduce, as a ring would use it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=ranks)
    tensor = torch.ones(4_000_000)
    seconds = best(lambda: dist.all_reduce(tensor))
    if rank == 0:
        with open(results, "w", encoding="utf-8") as file:
            file.write(str(2 * tensor.nbytes * (ranks - 1) / ranks / seconds))
    dist.barrier()
    dist.destroy_process_group()


def best(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the least seconds of several runs, after one that is not timed."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def in_processes(work: Callable[..., None], ranks: int, *arguments: Any) -> float:
    """Run a function in processes and return the number that rank 0 writes."""
    with tempfile.TemporaryDirectory() as folder:
        port, results = os.path.join(folder, "port"), os.path.join(folder, "result")
        mp.spawn(work, args=(ranks, port, *arguments, results), nprocs=ranks)
        with open(results, encoding="utf-8") as file:
            return float(file.read())


def this_machine(ranks: int) -> ClusterConfig:
    """Measure this machine as a cluster of single-threaded devices."""
    torch.set_num_threads(1)
    source = torch.ones(2_000_000)
    target = torch.empty_like(source)
    small = torch.ones(16)
    rate = in_processes(all_reduce_rate, ranks) if ranks > 1 else 1e9
    return ClusterConfig(
        num_devices=ranks,
        devices_per_node=ranks,
        tflops={"float32": matmul_rate("cpu", torch.float32, 1024) / 1e12},
        memory_gb=64.0,
        memory_bandwidth=2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9,
        bandwidth_within_node=rate / 1e9,
        operation_microseconds=1e6 * best(lambda: [small + 1 for _ in range(1000)]) / 1000,
    )


def main(arguments: list[str] | None = None) -> list[list[str]]:
    """Measure and print the table; return its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs="+", choices=("memory", "time"), default=["memory", "time"])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default: 10)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    headings = ["size", "ranks"]
    headings += [f"{unit}\n{kind}" for unit in ("MB", "ms") for kind in ("planned", "measured", "ratio")]
    rows = []
    for ranks in options.ranks:
        cluster = this_machine(ranks)
        for name in options.size:
            _, batch, length = SIZES[name]
            plan = Planner(config_of(name), cluster, batch, length, TrainerConfig()).plans()["ddp"]
            row = [name, str(ranks)]
            for kind, planned, unit in (("memory", plan.memory, 1e6), ("time", plan.step, 1e-3)):
                if kind not in options.measure:
                    row += ["–"] * 3
                    continue
                measured = in_processes(measure, ranks, name, options.steps if kind == "time" else 0)
                row += [f"{planned / unit:.1f}", f"{measured / unit:.1f}", f"{planned / measured:.2f}"]
            rows.append(row)
    table = Table(*headings, title="Plans compared with measured training steps, float32, one thread a rank")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
