"""Documents into token files: which split they belong to, batch by batch, with marks to go on from.

Every 256 MB of text a mark is set beside the files being written: all documents up to there are on the disk. A
preparation that was killed, or ran out of space, goes on from its last mark.
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

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mom.data.corpora import Corpus, Document
from mom.data.token_files import TokenFile, TokenWriter, token_dtype
from mom.data.tokenizer import TRAINING_BYTES, text_encoder, vocabulary_size
from mom.errors import RequestError
from mom.runs.files import write_json_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
MARK = "mark.json"

# Tokenized at once. Large enough to keep all threads busy, small enough for memory: the tokenizers library
# takes about a hundred bytes for each byte of text while it encodes.
BATCH_BYTES = 1_000_000
# Text between two marks.
MARK_BYTES = 256_000_000


def split_position(text: str) -> int:
    """Where a document stands between train and validation: a number below 2**64 from its text alone.

    So adding, renaming or moving documents moves no other, and two documents of the same text are never on
    different sides.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def validation_limit(corpus: Corpus, fraction: float) -> int:
    """The :func:`split_position` below which a document is for validation.

    It is ``fraction`` of 2**64, but where that leaves validation empty, as it may with few documents, the
    lowest document goes there. Reads the corpus only up to the first document for validation.

    Raises:
        RequestError: no document in the corpus.
    """
    limit = int(fraction * 2**64)
    positions = set()
    for document in corpus.documents():
        position = split_position(document.text)
        if position < limit:
            return limit
        positions.add(position)
    if not positions:
        raise RequestError(
            corpus.option, getattr(corpus, "path", corpus.kind), "a corpus with at least one document of text"
        )
    return min(positions) + 1 if len(positions) > 1 else limit


def tokenizer_sample(corpus: Corpus, limit: int) -> Iterator[str]:
    """Yield training texts to train a tokenizer on: all, or an even share of a corpus too large for that.

    Args:
        corpus: the corpus.
        limit: of its validation documents, see :func:`validation_limit`.
    """
    share = min(1.0, TRAINING_BYTES / max(1, corpus.estimate_bytes()))
    end = limit + int((2**64 - limit) * share)
    for document in corpus.documents():
        if limit <= split_position(document.text) < end:
            yield document.text


def read_mark(building: Path) -> dict[str, Any] | None:
    """How far the files in ``building`` are sure to be whole; ``None`` where they were not begun."""
    try:
        mark = json.loads((building / MARK).read_text(encoding="utf-8"))
        sizes = {name: (building / f"{name}.bin").stat().st_size for name in SPLITS}
    except (OSError, ValueError):
        return None
    return mark if all(sizes[name] >= mark[name]["size"] for name in SPLITS) else None


def _set_mark(building: Path, documents: int, writers: Mapping[str, TokenWriter]) -> None:
    """Write down, after the files' own contents, that the first ``documents`` documents are in them."""
    mark: dict[str, Any] = {"documents": documents}
    for name, writer in writers.items():
        mark[name] = {**writer.mark(), "size": writer.count * writer.dtype.itemsize}
    write_json_atomic(building / MARK, mark)


def tokenize(
    folder: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    limit: int,
    fingerprint: str,
    mark: Mapping[str, Any] | None,
    *,
    encoding_at_once: int = 2,
) -> dict[str, TokenFile]:
    """Write the token files of both splits.

    This thread reads documents and writes tokens. One other has the library encode a batch, which it does in threads
    of its own; a second one goes on with the next batch while the first takes the ids out, which only one thread can.

    Args:
        folder: where the files go, with the mark to go on from.
        corpus: what to tokenize.
        tokenizer: how.
        limit: of validation documents, see :func:`validation_limit`.
        fingerprint: of the corpus.
        mark: where to go on, as :func:`read_mark` found it; ``None`` begins.
        encoding_at_once: batches that are encoded at the same time; 1 where the library has one thread.
    """
    encoder = text_encoder(tokenizer)
    dtype = token_dtype(vocabulary_size(tokenizer))
    end = tokenizer.eos_token_id
    writers = {
        name: TokenWriter(folder / f"{name}.bin", dtype, end, None if mark is None else mark[name])
        for name in SPLITS
    }
    documents = 0 if mark is None else mark["documents"]
    marked = sum(writer.num_bytes for writer in writers.values())

    def encode(batch: list[Document]) -> list[list[int]]:
        encodings = encoder.encode_batch_fast([item.text for item in batch], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def write(batch: list[Document], encoded: list[list[int]]) -> None:
        nonlocal documents, marked
        sizes = [len(item.text.encode("utf-8")) for item in batch]
        held_out = [split_position(item.text) < limit for item in batch]
        rows = list(zip(encoded, sizes, held_out, strict=True))
        writers["train"].write((ids, size) for ids, size, out in rows if not out)
        writers["validation"].write((ids, size) for ids, size, out in rows if out)
        progress.update(task, advance=sum(sizes))
        documents += len(batch)
        written = sum(writer.num_bytes for writer in writers.values())
        if written - marked >= MARK_BYTES:
            _set_mark(folder, documents, writers)
            marked = written

    try:
        with _progress() as progress, ThreadPoolExecutor(encoding_at_once) as threads:
            task = progress.add_task(
                f"tokenizing {corpus.kind}", total=corpus.estimate_bytes() or None, completed=marked
            )
            running: deque[tuple[list[Document], Future[list[list[int]]]]] = deque()
            for batch in batches(itertools.islice(corpus.documents(), documents, None)):
                running.append((batch, threads.submit(encode, batch)))
                if len(running) > encoding_at_once:
                    write(*_ended(running))
            while running:
                write(*_ended(running))
            progress.update(task, total=sum(writer.num_bytes for writer in writers.values()))
        return {name: writer.finished(fingerprint) for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def _ended(running: deque[tuple[list[Document], Future[list[list[int]]]]]) -> tuple[Any, Any]:
    batch, encoded = running.popleft()
    return batch, encoded.result()


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about :data:`BATCH_BYTES`."""
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


def _progress() -> Progress:
    """A progress bar on standard error; where that is no terminal, one line at the end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
