"""Measure everything that a GPU is needed for, and write the table of docs/performance.md; ten minutes on one card.

    make bench-gpu

A measurement that fails, as for lack of memory, or that would begin after the time limit, leaves a dash and its reason.
Each one's numbers are in the output file as soon as it ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.decoding import greedy
from benchmarks.report import DOCS, Line, Measured, machine, table, today, write_docs
from benchmarks.setting import SIZES, Setting, Size
from benchmarks.steps import pool_growth
from benchmarks.timing import ratios, timed
from mom.config import OptimizerConfig
from mom.cost.machine import peak_flops, peak_memory, synchronize
from mom.errors import first_line
from mom.model import MoMForCausalLM
from mom.runs.files import write_json_atomic
from mom.training.optimizer import build_optimizer

LIMIT_SECONDS = 540.0
"""Time after which no measurement begins."""

LINES = (
    Line("mfu", "MFU of a training step, bfloat16", "{:.2f}", at_least=0.50),
    Line("mfu_compiled", "the same with `trainer.compile=true`", "{:.2f}", at_least=0.50),
    Line("step_ms", "step", "{:,.0f} ms"),
    Line("step_compiled_ms", "step, compiled", "{:,.0f} ms"),
    Line("to_dense", "step ÷ dense stack with equal FLOPs", "{:.2f}", at_most=1.20),
    Line("to_dense_compiled", "the same, both compiled", "{:.2f}", at_most=1.20),
    Line("pool_growth", "step with 64 modules in each pool ÷ with 4", "{:.2f}", at_most=1.25),
    Line("peak_gb", "peak memory of a step", "{:.1f} GB"),
    Line("peak_checkpointed_gb", "the same with `trainer.activation_checkpointing=true`", "{:.1f} GB"),
    Line("decode_1", "decoding with a cache, batch 1", "{:,.0f} tokens/s"),
    Line("decode_many", "decoding with a cache, batch 16", "{:,.0f} tokens/s"),
    Line("host_syncs", "host synchronizations in a training step", "{:.0f}", at_most=0),
    Line(
        "float32_difference",
        "loss and gradient norm, GPU float32 against CPU float32",
        "{:.1e}",
        at_most=1e-4,
    ),
    Line(
        "bfloat16_difference",
        "loss and gradient norm, GPU bfloat16 against CPU float32",
        "{:.1e}",
        at_most=0.05,
    ),
)


class GPUBench(Setting):
    """The measurements of a card, each of which returns some of the lines."""

    def __init__(self, size: Size, dtype: torch.dtype, device: str, repeats: int) -> None:
        super().__init__(size, dtype, device)
        self.repeats = repeats

    def timed(self, contenders: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Return each contender's seconds; they run in turn."""
        return timed(contenders, self.repeats, device=self.device)

    def step(self) -> dict[str, Measured]:
        """Time a step of this model and of a dense stack with its FLOPs, in turn, not compiled and compiled."""
        mom = self.model(self.size.config())
        flops = self.flops(mom.config, self.usage(mom))
        dense = self.model(self.plain_with_flops(flops))
        share = self.flops(dense.config) / flops
        peak, _ = peak_flops(torch.device(self.device), self.dtype)
        found: dict[str, Measured] = {}
        for suffix in ("", "_compiled"):
            if suffix:
                for model in (mom, dense):
                    model.model.compile_layers()
            seconds = self.timed({"mom": self.mom_training(mom), "dense": self.mom_training(dense)})
            found |= {
                f"mfu{suffix}": Measured.of(flops / time_ / peak for time_ in seconds["mom"]),
                f"step{suffix}_ms": Measured.of(1e3 * time_ for time_ in seconds["mom"]),
                f"to_dense{suffix}": Measured.of(ratios(seconds, "mom", "dense", share)),
            }
        return found

    def pool_size(self) -> dict[str, Measured]:
        """Time a step with few and with many modules, in turn."""
        return {"pool_growth": pool_growth(self.dtype, self.size, self.repeats, self.device)}

    def memory(self) -> dict[str, Measured]:
        """Measure the peak of a step with weights and gradients."""
        model = self.model(self.size.config())
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        found = {}
        for name in ("peak_gb", "peak_checkpointed_gb"):
            peak = weights + peak_memory(self.mom_training(model), self.device)
            found[name] = Measured.of([peak / 1e9])
            model.gradient_checkpointing_enable()
        return found

    def decode(self) -> dict[str, Measured]:
        """Time greedy decoding with a cache after 16 tokens."""
        size, start = self.size, min(16, self.size.length)
        new = min(size.new_tokens, size.length - start) or size.new_tokens
        model = self.model(size.config(max_positions=max(size.length, start + new))).eval()
        found = {}
        for name, sequences in (("decode_1", 1), ("decode_many", 16)):
            prompt = torch.randint(size.vocab_size, (sequences, start), device=self.device)
            with self.autocast():
                seconds = self.timed({name: greedy(model, prompt, new)})[name]
            found[name] = Measured.of(sequences * new / time_ for time_ in seconds)
        return found

    def host_syncs(self) -> dict[str, Measured]:
        """Run a training step with clipping and AdamW in which waiting for the GPU is an error."""
        model = self.model(self.size.config())
        adamw = build_optimizer(model, vars(OptimizerConfig()), fused=True)

        def step() -> None:
            self.backward(model, output_logits=False)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()

        step()
        synchronize(self.device)
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            if self.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        return {"host_syncs": Measured.of([0.0])}

    def agreement(self) -> dict[str, Measured]:
        """Compare the loss and the gradient's norm of a small model with those on the CPU in float32."""
        small = SIZES["smallest"]
        torch.manual_seed(0)
        model = MoMForCausalLM(small.config())
        numbers = {}
        for name, device, dtype in (
            ("cpu", "cpu", torch.float32),
            ("float32", self.device, torch.float32),
            ("bfloat16", self.device, torch.bfloat16),
        ):
            setting = type(self)(small, dtype, device, 1)
            setting.ids = torch.arange(small.batch * small.length, device=device).view(small.batch, -1)
            setting.ids %= small.vocab_size
            copy = MoMForCausalLM(small.config()).train()
            copy.load_state_dict(model.state_dict())
            copy.to(device)
            loss = setting.backward(copy, output_logits=False)
            gradients = [p.grad.float() for p in copy.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            numbers[name] = (float(loss), float(norm))
        return {
            f"{name}_difference": Measured.of(
                [max(abs(a - b) / abs(b) for a, b in zip(numbers[name], numbers["cpu"], strict=True))]
            )
            for name in ("float32", "bfloat16")
        }


def measure_all(
    size: Size,
    device: str,
    repeats: int,
    keep: Callable[[dict[str, Measured], dict[str, str]], None],
    limit: float = LIMIT_SECONDS,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Run every measurement; return the rows' numbers and why others are missing; ``keep`` gets both after each."""
    began = time.perf_counter()
    bench = GPUBench(size, torch.bfloat16, device, repeats)
    found: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    parts: tuple[Callable[[], dict[str, Measured]], ...] = (
        bench.host_syncs,
        bench.agreement,
        bench.memory,
        bench.pool_size,
        bench.step,
        bench.decode,
    )
    for part in parts:
        name = part.__name__
        if time.perf_counter() - began > limit:
            missing[name] = f"no time: {limit:.0f} s were over"
            continue
        print(f"{time.perf_counter() - began:4.0f} s: {name.replace('_', ' ')}", flush=True)
        try:
            found |= part()
        except Exception as error:  # the other rows can still be measured
            missing[name] = f"{type(error).__name__}: {first_line(error)}"
        keep(found, missing)
        if device == "cuda":
            torch.cuda.empty_cache()
    return found, missing


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench-gpu ARGS=", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="large", help="width of GPT-2 large by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_gpu.json"))
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: make bench-gpu requires a CUDA GPU, and PyTorch finds none", file=sys.stderr)
        return 2
    return report(options.size, "cuda", options.repeats, options.out, options.docs)


def report(size: str, device: str, repeats: int, out: Path, docs: Path) -> int:
    """Measure a size, and write the numbers and the table."""
    about, shape = machine(device), SIZES[size]
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(found: dict[str, Measured], missing: dict[str, str]) -> None:
        results = {name: dataclasses.asdict(measured) for name, measured in found.items()}
        record = {
            "machine": about,
            "date": today(),
            "size": size,
            "results": results,
            "missing": missing,
        }
        write_json_atomic(out, record)

    found, missing = measure_all(shape, device, repeats, keep)
    heading = (
        f"{about['device']}, PyTorch {about['torch']}, {today()}; width {shape.d_model}, "
        f"{shape.batch} × {shape.length} tokens, 4 + 4 modules, {repeats} repetitions"
    )
    text = table(LINES, found, missing, heading)
    write_docs(docs, "make bench-gpu", text)
    print(f"\n{text}\n\nWritten to {out} and {docs}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
