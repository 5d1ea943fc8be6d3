"""Measure the speed of this machine's CPU, row by row, and write the table of docs/performance.md; twenty minutes.

    make bench
    make bench ARGS=--resume                     # only what the file does not have, as after an interruption
    make bench ARGS="--rows decode narrow_48"    # these again, and keep the others

Every row runs in a process of its own. Contenders run in turn, so that a slowdown of the machine affects all of them;
a row is the median of the repetitions, with quartiles in brackets. A training step is a forward and backward pass,
without the optimizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import decoding, loop, programs, steps, tokenization
from benchmarks.report import DOCS, Line, Measured, machine, table, today, write_docs
from mom.cost.machine import keep_freed_memory
from mom.errors import first_line
from mom.runs.files import read_json, write_json_atomic


@dataclasses.dataclass(frozen=True)
class Row(Line):
    """A row of the table, and how it is measured.

    Args:
        measure: runs in a process of its own.
        threads: PyTorch's threads; ``None`` keeps its default.
        keeps_freed_memory: whether the process keeps freed memory, as training does.
    """

    measure: Callable[[], Measured] = dataclasses.field(kw_only=True)
    threads: int | None = None
    keeps_freed_memory: bool = True


FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
COST = ("task=cost", "models=[gpt2_large,mom_large_deep,mom_large_shallow]")


def _narrow(width: int, heads: int, tokens: int, at_most: float) -> Row:
    what = f"width {width}, {tokens} tokens, one thread: step ÷ plain blocks with equal FLOPs"
    measure = partial(steps.narrow, width, heads, tokens)
    return Row(f"narrow_{width}", what, "{:.2f}", at_most=at_most, threads=1, measure=measure)


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "matmul_float32",
            "`small`, float32: useful FLOP/s of a step ÷ rate of matmuls",
            "{:.2f}",
            at_least=0.80,
            measure=partial(steps.of_matmul_rate, FLOAT32),
        ),
        Row(
            "matmul_bfloat16",
            "`small`, bfloat16: the same",
            "{:.2f}",
            at_least=0.70,
            measure=partial(steps.of_matmul_rate, BFLOAT16),
        ),
        Row(
            "gpt2",
            "`small`, float32: step ÷ (step of transformers' GPT-2 × ratio of FLOPs), default allocator",
            "{:.2f}",
            at_most=0.75,
            keeps_freed_memory=False,
            measure=steps.to_gpt2,
        ),
        _narrow(48, 2, 256, at_most=1.35),
        _narrow(128, 4, 512, at_most=1.10),
        _narrow(256, 4, 512, at_most=1.07),
        Row(
            "pool_size",
            "`small`, bfloat16, 2,048 tokens: step with 64 modules in each pool ÷ with 4",
            "{:.2f}",
            at_most=1.25,
            measure=steps.pool_growth,
        ),
        Row(
            "skip",
            "`small`, float32: rounds of a step with half of the choices SKIP ÷ with none",
            "{:.2f}",
            at_most=0.60,
            measure=steps.half_skipped,
        ),
        Row(
            "memory",
            "`small`, float32: peak memory of a step ÷ naive implementation",
            "{:.2f}",
            at_most=0.50,
            measure=steps.memory,
        ),
        Row(
            "validation",
            "quickstart: tokens/s of validation ÷ of training",
            "{:.2f}",
            at_least=2.5,
            measure=partial(loop.validation, repeats=50),
        ),
        Row(
            "validation_small",
            "`small`, float32: the same",
            "{:.2f}",
            at_least=2.5,
            measure=partial(loop.validation, *loop.SMALL, repeats=2),
        ),
        Row(
            "callbacks",
            "quickstart: progress bar, statistics, and norms ÷ the rest of a training step",
            "{:.1%}",
            at_most=0.03,
            measure=loop.callbacks,
        ),
        Row(
            "decode",
            "quickstart: decoding a token, batch 1 ÷ transformers' GPT-2 with equal FLOPs",
            "{:.2f}",
            at_most=1.1,
            measure=decoding.to_gpt2,
        ),
        Row(
            "tokenize",
            "preparing 50 MB of text ÷ the `tokenizers` library alone",
            "{:.2f}",
            at_most=1.2,
            measure=tokenization.python_packages,
        ),
        Row(
            "refuse",
            "start: a refused request, `model.d_model=130`",
            "{:.2f} s",
            at_most=0.5,
            measure=partial(programs.start, "model.d_model=130", code=2),
        ),
        Row("help", "start: `--help`", "{:.2f} s", at_most=0.6, measure=partial(programs.start, "--help")),
        Row(
            "first_step",
            "start: quickstart until its first step has ended, corpus cached",
            "{:.1f} s",
            at_most=8.0,
            measure=partial(programs.start, programs.UNTIL_FIRST_STEP),
        ),
        Row("cost", f"`{' '.join(COST)}`", "{:.1f} s", at_most=5.0, measure=partial(programs.start, *COST)),
        Row(
            "sweep", "a sweep's job outside its own training", "{:.1f} s", at_most=2.0, measure=programs.sweep
        ),
    )
}


def run_row(row: Row) -> Measured:
    """Measure a row in a new process.

    Raises:
        RuntimeError: it failed, or its process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([steps.__name__, loop.__name__])  # the libraries, imported once
    result, pipe = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(row, pipe))
    process.start()
    pipe.close()
    try:
        found = result.recv()
    except EOFError:
        process.join()
        found = f"its process ended with exit code {process.exitcode}"
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _measure(row: Row, pipe: Connection) -> None:
    """Send the measurement, or the first line of an error."""
    if row.threads is not None:
        torch.set_num_threads(row.threads)
    if row.keeps_freed_memory:
        keep_freed_memory()
    try:
        pipe.send(row.measure())
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {first_line(error)}")


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of earlier runs, or an empty one of this machine.

    Raises:
        ValueError: the record is of another machine, or another version of PyTorch.
    """
    here = machine("cpu")
    record = read_json(path) if path.exists() else {"machine": here, "rows": {}}
    if record["machine"] != here:
        raise ValueError(f"{path} has the rows of another machine or PyTorch; move it, or pass another --out")
    return record


def measure_all(
    rows: Iterable[Row], path: Path, *, resume: bool, run: Callable[[Row], Measured]
) -> dict[str, str]:
    """Measure rows, and add each to the record in a file as soon as it is measured.

    Args:
        rows: what to measure; their earlier numbers are removed first.
        path: the file.
        resume: keep earlier numbers, and skip their rows.
        run: measures a row, or raises ``RuntimeError``.

    Returns:
        Why rows could not be measured, by name.
    """
    record = read_record(path)
    measured = record["rows"]
    pending = [row for row in rows if not (resume and row.name in measured)]
    for row in pending:
        measured.pop(row.name, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, record)
    missing = {}
    for row in pending:
        began = time.perf_counter()
        try:
            found = run(row)
        except RuntimeError as error:  # the other rows can still be measured
            missing[row.name] = str(error)
            print(f"{row.name}: {missing[row.name]}", flush=True)
            continue
        wall = time.perf_counter() - began
        measured[row.name] = {"date": today(), "wall": wall, **dataclasses.asdict(found)}
        write_json_atomic(path, record)
        print(f"{row.name}: {row.reached(found)}, target {row.target}, {wall:.0f} s", flush=True)
    return missing


def report(record: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """Return the table of a record."""
    about = record["machine"]
    dates = sorted({row["date"] for row in record["rows"].values()}) or [today()]
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    fields = [field.name for field in dataclasses.fields(Measured)]
    measured = {
        name: Measured(**{field: row[field] for field in fields}) for name, row in record["rows"].items()
    }
    heading = f"{about['device']}, {about['threads']} threads, PyTorch {about['torch']}, {when}"
    return table(ROWS.values(), measured, missing, heading)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS)
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows of earlier runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"))
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    try:
        rows = [ROWS[name] for name in options.rows]
        missing = measure_all(rows, options.out, resume=options.resume, run=run_row)
    except ValueError as error:
        parser.error(str(error))
    text = report(read_record(options.out), missing)
    write_docs(options.docs, "make bench", text)
    print(f"\n{text}\n\nWritten to {options.out} and {options.docs}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
