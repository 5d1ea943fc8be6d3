"""Benchmark time and memory against a dense stack, transformers' GPT-2, and a matmul, interleaved in one run.

    python -m benchmarks.bench --size small --precision float32 bfloat16
    make bench ARGS="--size quickstart --measure step decode memory growth"

Every repetition times all contenders one after another, so that a slowdown of the machine affects all of them. Medians
and spread are over repetitions. A step is a forward and backward pass, without the optimizer.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.callbacks import measure_callbacks
from benchmarks.gpt2 import GPT2Process, gpt2_training
from benchmarks.naive import naive_loss
from benchmarks.setting import SIZES, Setting, Size
from mom.cost.estimate import Usage, flops_per_token, measured_usage
from mom.cost.machine import keep_freed_memory, peak_memory, synchronize
from mom.model import MoMConfig, MoMForCausalLM

MEASURES = ("step", "decode", "memory", "growth", "callbacks")

Seconds = dict[str, list[float]]


class Bench(Setting):
    """The measurements of a setting, each with ``repeats`` repetitions."""

    def __init__(self, size: Size, dtype: torch.dtype, device: str, repeats: int) -> None:
        super().__init__(size, dtype, device)
        self.repeats = repeats

    def model(self, config: MoMConfig) -> MoMForCausalLM:
        """Build a seeded model."""
        torch.manual_seed(0)
        return MoMForCausalLM(config).train().to(self.device)

    def usage(self, model: MoMForCausalLM, ids: Tensor | None = None) -> Usage:
        """Return the modules per step that a model's tokens use on the batch."""
        with torch.no_grad(), self.autocast():
            output = model(input_ids=self.ids if ids is None else ids, output_routing=True, logits_to_keep=1)
        return measured_usage(model.config, output.routing)

    def training(self, model: MoMForCausalLM, ids: Tensor | None = None) -> Callable[[], None]:
        """Return a function that runs a model's forward and backward pass."""
        ids = self.ids if ids is None else ids

        def step() -> None:
            with self.autocast():
                loss = model(input_ids=ids, labels=ids, output_logits=False).loss
            loss.backward()
            model.zero_grad(set_to_none=True)

        return step

    def timed(self, contenders: Mapping[str, Callable[[], object]], *, warm_up: bool = True) -> Seconds:
        """Return each contender's seconds per repetition, after an unmeasured repetition if ``warm_up``."""
        seconds: Seconds = {name: [] for name in contenders}
        for repeat in range(0 if warm_up else 1, self.repeats + 1):
            for name, work in contenders.items():
                synchronize(self.device)
                start = time.perf_counter()
                work()
                synchronize(self.device)
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
        return seconds

    def step(self) -> dict[str, float]:
        """Measure a training step of this model, a dense stack, and transformers' GPT-2, and a matmul."""
        size = self.size
        mom = self.model(size.config())
        usage = self.usage(mom)
        flops = self.flops(mom.config, usage)
        layer = (self.flops(_plain(size, 2)) - self.flops(_plain(size, 1))) or 1.0
        layers = max(1, round((flops - self.flops(_plain(size, 1))) / layer) + 1)
        dense = self.model(_plain(size, layers))
        left = torch.randn(size.matmul, size.matmul, device=self.device, dtype=self.dtype)
        out = torch.empty_like(left)
        work = {
            "mom": self.training(mom),
            "dense": self.training(dense),
            "gpt2": gpt2_training(self),
            "matmul": lambda: torch.mm(left, left, out=out),
        }
        extra: tuple[str, ...] = ()
        with contextlib.ExitStack() as stack:
            if self.device == "cpu":
                extra = ("gpt2_default_allocator",)
                work[extra[0]] = stack.enter_context(GPT2Process(self)).step
            seconds = self.timed(work)
        gpt2_flops = self.flops(_plain(size, size.layers))
        return ratios(
            seconds,
            {
                "mom": flops,
                "dense": self.flops(dense.config),
                "gpt2": gpt2_flops,
                **dict.fromkeys(extra, gpt2_flops),
                "matmul": 2.0 * size.matmul**3,
            },
        ) | {**{f"usage/{name}": value for name, value in usage.items()}, "dense/layers": layers}

    def flops(self, config: MoMConfig, usage: Usage | None = None) -> float:
        """Return the FLOPs of a training step on this batch."""
        length = self.ids.shape[1]
        return flops_per_token(config, length, usage).training * self.ids.numel()

    def decode(self) -> dict[str, float]:
        """Measure greedy decoding of a batch of prompts of 16 tokens, with and without the cache."""
        size, prompt_length = self.size, min(16, self.size.length)
        model = self.model(
            size.config(max_positions=max(size.length, prompt_length + size.new_tokens))
        ).eval()
        prompt = torch.randint(size.vocab_size, (size.sequences, prompt_length), device=self.device)

        def generate(use_cache: bool, new_tokens: int = size.new_tokens) -> None:
            length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
            with torch.no_grad(), self.autocast():
                model.generate(prompt, use_cache=use_cache, do_sample=False, pad_token_id=0, **length)

        for use_cache in (True, False):
            generate(
                use_cache, new_tokens=2
            )  # a short warm-up: the full length takes minutes without a cache
        work = {"cached": lambda: generate(True), "uncached": lambda: generate(False)}
        seconds = self.timed(work, warm_up=False)
        cached, uncached = (statistics.median(seconds[name]) for name in ("cached", "uncached"))
        new = size.new_tokens * size.sequences
        return {
            **spread(seconds),
            "decode/new_tokens": size.new_tokens,
            "decode/sequences": size.sequences,
            "cached/tokens_per_second": new / cached,
            "uncached/tokens_per_second": new / uncached,
            "decode/cached_over_uncached": uncached / cached,
        }

    def memory(self) -> dict[str, float]:
        """Measure the peak memory of our and the naive training step, including parameters and gradients."""
        model = self.model(self.size.config())
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

        def naive() -> None:
            with self.autocast():
                loss = naive_loss(model, self.ids)
            loss.backward()
            model.zero_grad(set_to_none=True)

        ours = weights + peak_memory(self.training(model), self.device)
        theirs = weights + peak_memory(naive, self.device)
        model.gradient_checkpointing_enable()
        checkpointed = weights + peak_memory(self.training(model), self.device)
        return {
            "memory/ours": ours,
            "memory/checkpointed": checkpointed,
            "memory/naive": theirs,
            "memory/ours_over_naive": ours / theirs,
            "memory/checkpointed_over_naive": checkpointed / theirs,
        }

    def growth(self) -> dict[str, float]:
        """Measure the step time for growing numbers of tokens, rounds, and modules, interleaved."""
        vocabulary = self.size.vocab_size
        modules = {
            n: self.model(self.size.config(num_attention_modules=n, num_ffn_modules=n)) for n in (4, 16, 64)
        }
        work: dict[str, Callable[[], object]] = {}
        for factor in (1, 2, 4):
            ids = torch.randint(vocabulary, (self.size.batch * factor, self.size.length), device=self.device)
            work[f"tokens/{ids.numel()}"] = self.training(modules[4], ids)
        for rounds in (4, 8, 16):
            work[f"rounds/{rounds}"] = self.training(self.model(self.size.config(num_rounds=rounds)))
        for count, model in modules.items():
            work[f"modules/{count}"] = self.training(model)
        return spread(self.timed(work))

    def callbacks(self) -> dict[str, float]:
        """Measure the overhead of the routing statistics in the trainer."""
        precision = "32-true" if self.dtype == torch.float32 else "bf16-mixed"
        return measure_callbacks(self.model(self.size.config()), self.ids, precision, self.repeats)

    def profile(self) -> str:
        """Profile a training step."""
        step = self.training(self.model(self.size.config()))
        step()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device == "cuda")
        with profile(activities=activities) as profiler:
            step()
        key = "self_cuda_time_total" if self.device == "cuda" else "self_cpu_time_total"
        return profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50)


def _plain(size: Size, layers: int) -> MoMConfig:
    return size.config(num_stages=0, num_bottom_blocks=layers, num_top_blocks=0)


def spread(seconds: Seconds) -> dict[str, float]:
    """Return the median, fastest, and slowest seconds of each contender."""
    parts = {"seconds": statistics.median, "fastest": min, "slowest": max}
    return {
        f"{name}/{part}": float(take(values))
        for name, values in seconds.items()
        for part, take in parts.items()
    }


def ratios(seconds: Seconds, flops: Mapping[str, float]) -> dict[str, float]:
    """Compare the medians of ``mom``, ``dense``, ``gpt2``, ``matmul``, and others, given the useful FLOPs of each."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rate = {name: flops[name] / median[name] for name in median}
    return {
        **spread(seconds),
        **{f"{name}/flops": float(value) for name, value in flops.items()},
        **{f"{name}/flops_per_second": value for name, value in rate.items()},
        "ratio/of_matmul_rate": rate["mom"] / rate["matmul"],
        "ratio/to_gpt2_per_step": median["mom"] / median["gpt2"],
        "ratio/to_gpt2_per_flop": rate["gpt2"] / rate["mom"],
        **{
            f"ratio/to_{name}_per_flop": rate[name] / rate["mom"] for name in rate if name.startswith("gpt2_")
        },
        "ratio/to_dense_per_flop": rate["dense"] / rate["mom"],
    }


def machine(device: str) -> dict[str, Any]:
    """Describe the machine without its host name."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(": ")[2] if lines else model
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the requested measurements; print and write the results."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["quickstart"])
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=["step", "decode", "memory"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="only profile a training step")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"))
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keeps = keep_freed_memory() if device == "cpu" else False
    console = Console()
    results: dict[str, Any] = {"machine": machine(device) | {"freed memory kept": keeps}, "results": {}}
    for size in options.size:
        for precision in options.precision:
            bench = Bench(SIZES[size], getattr(torch, precision), device, options.repeats)
            if options.profile:
                console.print(bench.profile(), soft_wrap=True)
                continue
            measured: dict[str, float] = {}
            for measure in options.measure:
                measured |= getattr(bench, measure)()
            results["results"][f"{size}, {precision}"] = measured
            console.print(table(f"{size}, {precision}", measured))
    if not options.profile:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
        console.print(f"Written to {options.out}", soft_wrap=True, highlight=False)
    return results


def table(title: str, measured: Mapping[str, float]) -> Table:
    """Return a table of all numbers, in the order of measurement."""
    shown = Table("", "", title=title, title_justify="left")
    for name, value in measured.items():
        shown.add_row(name, f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}")
    return shown


if __name__ == "__main__":
    main()
