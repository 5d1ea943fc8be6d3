"""Time a training step of narrow models, where research loops and controls live, next to a plain model of equal FLOPs.

    python -m benchmarks.narrow

Four rounds over 4 + 4 modules with K 1 and no SKIP, against four plain blocks, in turn, on one thread.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench
from benchmarks.setting import Size
from mom.cost.machine import keep_freed_memory

SETTINGS = ((48, 2, 256), (128, 4, 512), (256, 4, 512))
"""Width, attention heads, and tokens of a batch."""
LENGTH, DEPTH = 16, 4


def measure(width: int, num_heads: int, num_tokens: int, repeats: int) -> dict[str, float]:
    """Return the fastest seconds of a step of both models, and the ratio of the MoM's to the plain one's."""
    size = Size(width, num_heads, 64, LENGTH, num_tokens // LENGTH, DEPTH, matmul=1, new_tokens=1)
    bench = Bench(size, torch.float32, "cpu", repeats)
    ends = {"num_bottom_blocks": 0, "num_top_blocks": 0, "anchors": False}
    mom = size.config(**ends, num_rounds=DEPTH, top_k=1, router="linear", skip=False)
    plain = size.config(num_bottom_blocks=DEPTH, num_top_blocks=0, num_stages=0)
    models = {"mom": bench.model(mom), "plain": bench.model(plain)}
    seconds = bench.timed({name: bench.training(model) for name, model in models.items()})
    fastest = {name: min(values) for name, values in seconds.items()}
    return fastest | {"ratio": fastest["mom"] / fastest["plain"]}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure all widths; print and return the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.narrow", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args(arguments).repeats
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        results = {
            f"width {width}, {num_tokens} tokens": measure(width, num_heads, num_tokens, repeats)
            for width, num_heads, num_tokens in SETTINGS
        }
    finally:
        torch.set_num_threads(threads)
    table = Table("", "MoM, ms", "plain, ms", "ratio")
    for name, found in results.items():
        table.add_row(
            name, f"{1e3 * found['mom']:.2f}", f"{1e3 * found['plain']:.2f}", f"{found['ratio']:.2f}"
        )
    Console().print(table)
    return results


if __name__ == "__main__":
    main()
