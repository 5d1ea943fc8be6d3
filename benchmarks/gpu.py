"""Measure everything that a GPU is needed for, and write the table of docs/performance.md; ten minutes on one card.

    make bench-gpu

A measurement that fails, as for lack of memory, or that would begin after the time limit, leaves a dash and its reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench, machine
from benchmarks.setting import SIZES, Size
from mom.config import OptimizerConfig
from mom.cost.estimate import flops_per_token
from mom.cost.machine import peak_flops, peak_memory, synchronize
from mom.errors import first_line
from mom.model import MoMConfig, MoMForCausalLM
from mom.training.optimizer import build_optimizer

BEGIN, END = "<!-- make bench-gpu: begin -->", "<!-- make bench-gpu: end -->"
DOCS = Path("docs/performance.md")
LIMIT_SECONDS = 540.0
"""Time after which no measurement begins."""

ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("mfu", "MFU of a training step, bfloat16", "{:.2f}", "≥ 0.50"),
    ("mfu_compiled", "the same with `trainer.compile=true`", "{:.2f}", "≥ 0.50"),
    ("step_ms", "step (ms)", "{:,.0f}", ""),
    ("step_compiled_ms", "step, compiled (ms)", "{:,.0f}", ""),
    ("to_dense", "step ÷ dense stack with equal FLOPs", "{:.2f}", "≤ 1.20"),
    ("to_dense_compiled", "the same, both compiled", "{:.2f}", "≤ 1.20"),
    ("pool_growth", "step with 64 modules in each pool ÷ with 4", "{:.2f}", "≤ 1.25"),
    ("peak_gb", "peak memory of a step (GB)", "{:.1f}", ""),
    ("peak_checkpointed_gb", "the same with `trainer.activation_checkpointing=true`", "{:.1f}", ""),
    ("decode_1", "decoding with a cache, batch 1 (tokens/s)", "{:,.0f}", ""),
    ("decode_many", "decoding with a cache, batch 16 (tokens/s)", "{:,.0f}", ""),
    ("host_syncs", "host synchronizations in a training step", "{:.0f}", "0"),
    ("float32_difference", "loss and gradient norm, GPU float32 against CPU float32", "{:.1e}", "≤ 1e-4"),
    ("bfloat16_difference", "loss and gradient norm, GPU bfloat16 against CPU float32", "{:.1e}", "≤ 0.05"),
)
"""Name, label, format, and goal of each row."""


class GPUBench(Bench):
    """The measurements of a card, each of which returns some of the rows."""

    def step(self) -> dict[str, float]:
        """Time a step of this model and of a dense stack with its FLOPs, in turn, not compiled and compiled."""
        mom = self.model(self.size.config())
        flops = self.flops(mom.config, self.usage(mom))
        one, two = (self.flops(_dense(self.size, layers)) for layers in (1, 2))
        dense = self.model(_dense(self.size, max(1, round((flops - one) / (two - one)) + 1)))
        share = flops / self.flops(dense.config)
        peak, _ = peak_flops(torch.device(self.device), self.dtype)
        found: dict[str, float] = {}
        for suffix in ("", "_compiled"):
            if suffix:
                for model in (mom, dense):
                    model.model.compile_layers()
            seconds = self.timed({"mom": self.training(mom), "dense": self.training(dense)})
            ours, theirs = (statistics.median(seconds[name]) for name in ("mom", "dense"))
            found |= {
                f"mfu{suffix}": flops / ours / peak,
                f"step{suffix}_ms": 1e3 * ours,
                f"to_dense{suffix}": ours / theirs / share,
            }
        return found

    def pool_size(self) -> dict[str, float]:
        """Time a step with few and with many modules, in turn."""
        work = {
            count: self.training(
                self.model(self.size.config(num_attention_modules=count, num_ffn_modules=count))
            )
            for count in (4, 64)
        }
        seconds = self.timed({str(count): step for count, step in work.items()})
        return {"pool_growth": statistics.median(seconds["64"]) / statistics.median(seconds["4"])}

    def memory(self) -> dict[str, float]:
        """Measure the peak of a step with weights and gradients."""
        model = self.model(self.size.config())
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        found = {"peak_gb": (weights + peak_memory(self.training(model), self.device)) / 1e9}
        model.gradient_checkpointing_enable()
        found["peak_checkpointed_gb"] = (weights + peak_memory(self.training(model), self.device)) / 1e9
        return found

    def decode(self) -> dict[str, float]:
        """Time greedy decoding with a cache after 16 tokens."""
        size, start = self.size, min(16, self.size.length)
        new = min(size.new_tokens, size.length - start) or size.new_tokens
        model = self.model(size.config(max_positions=max(size.length, start + new))).eval()
        found = {}
        for name, sequences in (("decode_1", 1), ("decode_many", 16)):
            prompt = torch.randint(size.vocab_size, (sequences, start), device=self.device)

            def generate(prompt: torch.Tensor = prompt) -> None:
                length = {"max_new_tokens": new, "min_new_tokens": new}
                with torch.no_grad(), self.autocast():
                    model.generate(prompt, do_sample=False, pad_token_id=0, **length)

            seconds = self.timed({name: generate})[name]
            found[name] = sequences * new / statistics.median(seconds)
        return found

    def host_syncs(self) -> dict[str, float]:
        """Run a training step with clipping and AdamW in which waiting for the GPU is an error."""
        model = self.model(self.size.config())
        adamw = build_optimizer(model, vars(OptimizerConfig()), fused=True)

        def step() -> None:
            self.backward(model)
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
        return {"host_syncs": 0.0}

    def backward(self, model: MoMForCausalLM) -> torch.Tensor:
        """Run the forward and backward pass of a batch; return the loss."""
        with self.autocast():
            loss = model(input_ids=self.ids, labels=self.ids, output_logits=False).loss
        loss.backward()
        return loss.detach()

    def agreement(self) -> dict[str, float]:
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
            loss = setting.backward(copy)
            gradients = [p.grad.float() for p in copy.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            numbers[name] = (float(loss), float(norm))
        return {
            f"{name}_difference": max(
                abs(here - there) / abs(there)
                for here, there in zip(numbers[name], numbers["cpu"], strict=True)
            )
            for name in ("float32", "bfloat16")
        }

    def flops(self, config: MoMConfig, usage: Mapping[str, float] | None = None) -> float:
        """Return the useful FLOPs of a training step on this batch."""
        return flops_per_token(config, self.ids.shape[1], usage).training * self.ids.numel()


def _dense(size: Size, layers: int) -> MoMConfig:
    return size.config(num_stages=0, num_bottom_blocks=layers, num_top_blocks=0)


def measure_all(
    size: Size, device: str, repeats: int, limit: float = LIMIT_SECONDS
) -> tuple[dict[str, float], dict[str, str]]:
    """Run every measurement; return the rows' numbers, and why others are missing."""
    began = time.perf_counter()
    bench = GPUBench(size, torch.bfloat16, device, repeats)
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    parts: tuple[Callable[[], dict[str, float]], ...] = (
        bench.host_syncs,
        bench.agreement,
        bench.memory,
        bench.pool_size,
        bench.decode,
        bench.step,
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
        if device == "cuda":
            torch.cuda.empty_cache()
    return found, missing


def table(
    found: Mapping[str, float], missing: Mapping[str, str], about: Mapping[str, Any], shape: str
) -> str:
    """Return the table of all rows in Markdown."""
    lines = [f"{about['device']}, PyTorch {about['torch']}, {about['date']}; {shape}.", ""]
    lines += ["| | measured | goal |", "|---|--:|---|"]
    for name, label, form, goal in ROWS:
        value = form.format(found[name]) if name in found else "–"
        lines.append(f"| {label} | {value} | {goal} |")
    if missing:
        reasons = "; ".join(f"{name.replace('_', ' ')}: {reason}" for name, reason in missing.items())
        lines += ["", f"Not measured: {reasons}."]
    return "\n".join(lines)


def write_docs(docs: Path, text: str) -> None:
    """Replace the table between the two marks of a document."""
    before, begin, rest = docs.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{docs} has no marks for the table"
    docs.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


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
    found, missing = measure_all(SIZES[size], device, repeats)
    about, shape = machine(device), SIZES[size]
    text = table(
        found,
        missing,
        about,
        f"width {shape.d_model}, {shape.batch} × {shape.length} tokens, 4 + 4 modules, {repeats} repetitions",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": about, "size": size, "results": found, "missing": missing}
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_docs(docs, text)
    print(f"\n{text}\n\nWritten to {out} and {docs}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
