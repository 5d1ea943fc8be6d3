"""Tokenization of a corpus: assign documents to splits and write token files, resumably.

Every 256 MB of text, a mark is written next to the token files: all documents up to it are on disk. A preparation that
was killed or ran out of space resumes from its last mark.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mom.data.corpora import Corpus, Document
from mom.data.token_files import TokenFile, TokenWriter, token_dtype
from mom.data.tokenizer import TRAINING_BYTES, TextEncoder, vocabulary_size
from mom.errors import UsageError
from mom.runs.files import write_json_atomic
from mom.runs.progress import ProgressLine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
MARK = "mark.json"

# Text per batch. Large enough to keep all threads busy, small enough for memory: while encoding, the tokenizers library
# needs about a hundred bytes per byte of text.
BATCH_BYTES = 1_000_000
# Text between marks.
MARK_BYTES = 256_000_000


def split_position(text: str) -> int:
    """Hash a document's text to a number below 2**64, which decides its split.

    Adding, renaming, or moving documents does not change the split of others, and documents with the same text are
    always in the same split.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def validation_limit(corpus: Corpus, fraction: float) -> int:
    """Return the :func:`split_position` below which a document belongs to validation.

    The limit is ``fraction`` of 2**64. If that leaves validation empty, as can happen with few documents, the document
    with the lowest position is used. Reads the corpus up to the first validation document.

    Raises:
        UsageError: the corpus has no documents.
    """
    limit = int(fraction * 2**64)
    positions = set()
    for document in corpus.documents():
        position = split_position(document.text)
        if position < limit:
            return limit
        positions.add(position)
    if not positions:
        raise UsageError(f"{corpus.option}={getattr(corpus, 'path', corpus.kind)} has no documents")
    return min(positions) + 1 if len(positions) > 1 else limit


def tokenizer_sample(corpus: Corpus, limit: int) -> Iterator[str]:
    """Yield texts to train a tokenizer on: all training documents, or an even sample of a large corpus.

    ``limit`` is the :func:`validation_limit`.
    """
    fraction = min(1.0, TRAINING_BYTES / max(1, corpus.estimate_bytes()))
    end = limit + int((2**64 - limit) * fraction)
    for document in corpus.documents():
        if limit <= split_position(document.text) < end:
            yield document.text


def read_mark(building: Path) -> dict[str, Any] | None:
    """Return the last mark of an unfinished preparation, or ``None`` if it cannot be resumed."""
    try:
        mark = json.loads((building / MARK).read_text(encoding="utf-8"))
        sizes = {name: (building / f"{name}.bin").stat().st_size for name in SPLITS}
    except (OSError, ValueError):
        return None
    return mark if all(sizes[name] >= mark[name]["size"] for name in SPLITS) else None


def _write_mark(building: Path, documents: int, writers: Mapping[str, TokenWriter]) -> None:
    """Sync the token files, then record that they hold the first ``documents`` documents."""
    mark: dict[str, Any] = {"documents": documents}
    for name, writer in writers.items():
        mark[name] = {**writer.mark(), "size": writer.count * writer.dtype.itemsize}
    write_json_atomic(building / MARK, mark)


def write_token_files(
    folder: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    limit: int,
    fingerprint: str,
    mark: Mapping[str, Any] | None,
    *,
    concurrent_batches: int = 2,
) -> dict[str, TokenFile]:
    """Tokenize a corpus into the token files of both splits.

    The calling thread reads documents and writes tokens. Each batch is encoded in another thread, for which the library
    uses its own threads; while a batch's IDs are copied to Python, on a single thread, the next batch is encoded.

    Args:
        folder: the folder for the files and the mark.
        corpus: the documents to tokenize.
        tokenizer: a tokenizer with an end-of-text token.
        limit: see :func:`validation_limit`.
        fingerprint: the fingerprint of the corpus.
        mark: the result of :func:`read_mark` to resume from, or ``None`` to start.
        concurrent_batches: number of batches to encode at the same time; 1 if the library has one thread.
    """
    encoder = TextEncoder(tokenizer)
    dtype = token_dtype(vocabulary_size(tokenizer))
    end = tokenizer.eos_token_id
    writers = {
        name: TokenWriter(folder / f"{name}.bin", dtype, end, None if mark is None else mark[name])
        for name in SPLITS
    }
    documents = 0 if mark is None else mark["documents"]
    marked = sum(writer.num_bytes for writer in writers.values())

    def encode(batch: list[Document]) -> list[list[int]]:
        return encoder.encode([item.text for item in batch])

    def write(batch: list[Document], encoded: list[list[int]]) -> None:
        nonlocal documents, marked
        sizes = [len(item.text.encode("utf-8")) for item in batch]
        held_out = [split_position(item.text) < limit for item in batch]
        rows = list(zip(encoded, sizes, held_out, strict=True))
        writers["train"].write((ids, size) for ids, size, is_held_out in rows if not is_held_out)
        writers["validation"].write((ids, size) for ids, size, is_held_out in rows if is_held_out)
        line.advance(sum(sizes))
        documents += len(batch)
        written = sum(writer.num_bytes for writer in writers.values())
        if written - marked >= MARK_BYTES:
            _write_mark(folder, documents, writers)
            marked = written

    size = corpus.estimate_bytes() or None
    try:
        with (
            ProgressLine(f"tokenizing {corpus.kind}", size, marked, form=decimal) as line,
            ThreadPoolExecutor(concurrent_batches) as threads,
        ):
            running: deque[tuple[list[Document], Future[list[list[int]]]]] = deque()
            for batch in batches(itertools.islice(corpus.documents(), documents, None)):
                running.append((batch, threads.submit(encode, batch)))
                if len(running) > concurrent_batches:
                    first, encoded = running.popleft()
                    write(first, encoded.result())
            for remaining, encoded in running:
                write(remaining, encoded.result())
        return {name: writer.finish(fingerprint) for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents into batches of about :data:`BATCH_BYTES`."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
