"""Preparation of a corpus, next to the tokenizers library alone.

The library's fastest method, ``encode_batch_fast``, which preparation also uses, encodes the same documents from memory
with the same threads and batch size. Preparation reads, hashes, splits, tokenizes, packs, writes, and waits for the
disk.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Measured
from benchmarks.timing import ratios
from mom.config import DataConfig
from mom.data.corpora import open_corpus
from mom.data.prepare import prepare
from mom.data.tokenization import batches
from mom.data.tokenizer import TextEncoder, load_tokenizer, tokenizer_threads, train_tokenizer

VOCABULARY = 4096


class Timed(NamedTuple):
    """Wall seconds, and bytes of text."""

    seconds: float
    text: int


def library(config: DataConfig) -> Timed:
    """Time the tokenizers library alone, on documents that are already in memory, with copying the IDs to Python."""
    assert config.tokenizer is not None
    encoder = TextEncoder(load_tokenizer(config.tokenizer))
    texts = [[document.text for document in batch] for batch in batches(open_corpus(config).documents())]
    size = sum(len(text.encode()) for batch in texts for text in batch)
    with tokenizer_threads(config.num_processes):
        start = time.perf_counter()
        for batch in texts:
            encoder.encode(batch)
        return Timed(time.perf_counter() - start, size)


def preparation(config: DataConfig) -> Timed:
    """Time :func:`mom.data.prepare.prepare` with an empty cache, after loading the libraries."""
    assert config.tokenizer is not None
    load_tokenizer(config.tokenizer)
    start = time.perf_counter()
    prepared = prepare(config)
    seconds = time.perf_counter() - start
    return Timed(seconds, prepared.train.num_bytes + prepared.validation.num_bytes)


def compare(config: DataConfig, repeats: int) -> Measured:
    """Measure the time of preparation, divided by the library's; both run in turn, each in a new process."""
    seconds: dict[str, list[float]] = {"library": [], "preparation": []}
    for _ in range(repeats):
        for name, work in (("library", library), ("preparation", preparation)):
            with tempfile.TemporaryDirectory() as cache:
                placed = dataclasses.replace(config, cache_dir=cache)
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    seconds[name].append(process.submit(work, placed).result().seconds)
    return Measured.of(ratios(seconds, "preparation", "library"), seconds)


def python_packages(megabytes: int = 50, repeats: int = 3) -> Measured:
    """Compare on the Python sources of installed packages, with a tokenizer trained on a tenth of them."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Path(name) / "tokenizer"
        corpus = DataConfig(
            corpus="python_packages", max_bytes=megabytes * 1_000_000, num_processes=os.cpu_count()
        )
        tenth = dataclasses.replace(corpus, max_bytes=megabytes * 100_000)
        texts = (document.text for document in open_corpus(tenth).documents())
        train_tokenizer(texts, VOCABULARY).save_pretrained(str(tokenizer))
        return compare(dataclasses.replace(corpus, tokenizer=str(tokenizer)), repeats)
