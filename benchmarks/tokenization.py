"""Benchmark corpus preparation: speed compared with the tokenizers library alone, and memory growth.

    python -m benchmarks.tokenization
    python -m benchmarks.tokenization --text openwebtext.jsonl --tokenizer gpt2

Each corpus is prepared at one size and at ten times that size. For comparison, the library's fastest method,
``encode_batch_fast``, which preparation also uses, encodes the same documents from memory with the same threads and
batch size. Preparation reads, hashes, splits, tokenizes, writes, and waits for the disk. The two alternate, each in a
new process. The table shows medians of wall time and of the CPU time of all threads, which is less sensitive to other
jobs on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from mom.config import DataConfig
from mom.data.corpora import open_corpus
from mom.data.prepare import prepare
from mom.data.text import read_texts
from mom.data.tokenization import batches
from mom.data.tokenizer import TextEncoder, load_tokenizer, tokenizer_threads, train_tokenizer

GROWTH = 10


class Measured(NamedTuple):
    """A measurement: wall seconds, CPU seconds of all threads, peak memory in bytes, bytes of text."""

    seconds: float
    processor: float
    peak: int
    text: int


def library(config: DataConfig) -> Measured:
    """Time the tokenizers library alone, on documents that are already in memory, with copying the IDs to Python."""
    assert config.tokenizer is not None
    encoder = TextEncoder(load_tokenizer(config.tokenizer))
    texts = [[document.text for document in batch] for batch in batches(open_corpus(config).documents())]
    size = sum(len(text.encode()) for batch in texts for text in batch)
    with tokenizer_threads(config.num_processes):
        start, processor = time.perf_counter(), time.process_time()
        for batch in texts:
            encoder.encode(batch)
        return _measured(start, processor, size)


def preparation(config: DataConfig) -> Measured:
    """Time :func:`mom.data.prepare.prepare` with an empty cache, after loading the libraries."""
    assert config.tokenizer is not None
    load_tokenizer(config.tokenizer)
    start, processor = time.perf_counter(), time.process_time()
    prepared = prepare(config)
    return _measured(start, processor, prepared.train.num_bytes + prepared.validation.num_bytes)


def _measured(start: float, processor: float, size: int) -> Measured:
    seconds, used = time.perf_counter() - start, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux reports KiB
    return Measured(seconds, used, peak, size)


def compare(config: DataConfig, repeats: int) -> list[str]:
    """Time both alternately and return a row of the table."""
    runs: dict[str, list[Measured]] = {"library": [], "preparation": []}
    for _ in range(repeats):
        for name, work in (("library", library), ("preparation", preparation)):
            with tempfile.TemporaryDirectory() as cache:
                placed = dataclasses.replace(config, cache_dir=cache)
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    runs[name].append(process.submit(work, placed).result())
    size = runs["preparation"][0].text
    clock, processor = (
        [statistics.median(getattr(run, field) for run in measured) for measured in runs.values()]
        for field in ("seconds", "processor")
    )
    return [
        f"{size / 1e6:.1f}",
        *(f"{seconds:.1f}" for seconds in clock),
        f"{clock[0] / clock[1]:.0%}",
        *(f"{seconds:.1f}" for seconds in processor),
        f"{processor[0] / processor[1]:.0%}",
        f"{statistics.median(run.peak for run in runs['preparation']) / 1e6:.0f}",
    ]


def python_sources(megabytes: int, vocabulary: int, folder: Path) -> Iterator[tuple[str, DataConfig]]:
    """Yield ``python_packages`` at both sizes, with a tokenizer trained on the smaller corpus."""
    sizes = (megabytes, megabytes * GROWTH)
    first = open_corpus(DataConfig(corpus="python_packages", max_bytes=megabytes * 1_000_000))
    train_tokenizer((document.text for document in first.documents()), vocabulary).save_pretrained(
        str(folder)
    )
    for size in sizes:
        yield (
            "python_packages",
            DataConfig(corpus="python_packages", max_bytes=size * 1_000_000, tokenizer=str(folder)),
        )


def repeated(path: Path, tokenizer: str, megabytes: int, folder: Path) -> Iterator[tuple[str, DataConfig]]:
    """Yield both sizes of a corpus that repeats the documents of a file."""
    texts = [text for _, text in read_texts(path.name, path, "text")]
    for size in (megabytes, megabytes * GROWTH):
        target, written = folder / f"{size}.jsonl", 0
        with target.open("w", encoding="utf-8") as file:
            for text in itertools.cycle(texts):
                if written >= size * 1_000_000:
                    break
                written += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
        yield path.stem, DataConfig(corpus="text", path=str(target), tokenizer=tokenizer)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--megabytes", type=int, default=5, help="text of the smaller size, in MB (default: 5)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="measurements per median (default: 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of the library (default: all CPUs)"
    )
    parser.add_argument(
        "--vocabulary", type=int, default=4096, help="vocabulary of the trained tokenizer (default: 4096)"
    )
    parser.add_argument(
        "--text", type=Path, help=".jsonl or .parquet file to repeat instead of Python sources"
    )
    parser.add_argument("--tokenizer", default="gpt2", help="tokenizer of --text (default: gpt2)")
    options = parser.parse_args()
    table = Table(title=f"Preparation compared with the tokenizers library, {options.threads} threads")
    table.add_column("corpus", no_wrap=True)
    for name in (
        "MB",
        "library\ns",
        "prepare\ns",
        "ratio",
        "library\nCPU s",
        "prepare\nCPU s",
        "ratio",
        "peak\nMB",
    ):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.text is None:
            corpora = python_sources(options.megabytes, options.vocabulary, folder)
        else:
            corpora = repeated(options.text, options.tokenizer, options.megabytes, folder)
        for corpus, config in corpora:
            threaded = dataclasses.replace(config, num_processes=options.threads)
            table.add_row(corpus, *compare(threaded, options.repeats))
    Console().print(table)


if __name__ == "__main__":
    main()
