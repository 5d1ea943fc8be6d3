"""From a corpus to token files: once per content, tokenizer and split; afterwards from the cache.

A prepared corpus is a folder in the cache:

    <corpus>-<key>/   train.bin  validation.bin  meta.json  tokenizer/

It is built beside its place under a temporary name and renamed when everything is on the disk, so that a
folder that stands there is whole; its files' lengths are checked all the same, and a damaged one is built
anew. A lock lets one process build while others wait for it. Whoever holds a folder's lock may remove or go
on with what others began under that name: they must be dead.

Every 256 MB of text a mark is set beside the files being written: all documents up to there are on the disk.
A preparation that was killed, or ran out of space, goes on from its last mark.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mom.data.corpora import Corpus, Document, open_corpus
from mom.data.existing import open_token_files
from mom.data.token_file import TokenFile, TokenWriter, token_dtype
from mom.data.tokenizer import (
    TRAINING_BYTES,
    load_tokenizer,
    text_encoder,
    tokenizer_identity,
    tokenizer_threads,
    train_tokenizer,
    training_identity,
    vocabulary_size,
)
from mom.errors import RequestError
from mom.run_directory import write_json_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

log = logging.getLogger(__name__)

# Part of every key: raise it when the same input would give other files.
FORMAT = 1

# Tokenised at once. Large enough to keep all threads busy, small enough for memory: the tokenizers library
# takes about a hundred bytes for each byte of text while it encodes.
_BATCH_BYTES = 1_000_000
# Text between two marks.
_MARK_BYTES = 256_000_000
_MARK = "mark.json"
# An unfinished preparation that nobody went on with is removed after so many seconds.
_UNFINISHED_SECONDS = 7 * 24 * 3600
# What GPT-2's tokenizer makes of English text, for an estimate of the files' size.
_BYTES_PER_TOKEN = 4
_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus as tokens.

    Args:
        folder: in the cache.
        train: tokens to learn from.
        validation: tokens of other documents.
        tokenizer: that made them.
        fingerprint: of the corpus's content.
        key: of content, tokenizer and split: the same key means the same tokens in the same order.
    """

    folder: Path
    train: TokenFile
    validation: TokenFile
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    key: str

    @property
    def vocab_size(self) -> int:
        """Rows an embedding of these tokens needs."""
        return vocabulary_size(self.tokenizer)


def cache_folder(config: DataConfig) -> Path:
    """The cache: ``data.cache_dir``, else ``$MOM_CACHE``, else ``~/.cache/mom``."""
    return Path(config.cache_dir or os.environ.get("MOM_CACHE") or "~/.cache/mom").expanduser()


def prepare(config: DataConfig) -> PreparedCorpus:
    """Tokenise the corpus that ``config`` names, or find it in the cache.

    The result depends on the corpus, the tokenizer, ``tokenizer_vocab_size`` and ``validation_fraction``, and
    on nothing else: neither the length of windows nor the number of threads.

    Raises:
        RequestError: the corpus or the tokenizer cannot be read, or the cache cannot be written. Nothing is
            left behind but what a later call goes on from.
    """
    if config.corpus == "token_files":
        train, validation, its_tokenizer, key = open_token_files(config)
        return PreparedCorpus(train.path.parent, train, validation, its_tokenizer, train.fingerprint, key)
    corpus = open_corpus(config)
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    fingerprint = corpus.fingerprint()
    identity = (
        training_identity(config.tokenizer_vocab_size) if tokenizer is None else tokenizer_identity(tokenizer)
    )
    key = _key(fingerprint, identity, config.validation_fraction)
    folder = cache_folder(config) / f"{corpus.kind}-{key[:16]}"
    prepared = _open(folder, key)
    if prepared is None:
        with _cache_errors(folder.parent), _locked(folder):
            # Another process may have built it while this one waited for the lock.
            prepared = _open(folder, key)
            if prepared is None:
                _build(folder, corpus, tokenizer, config, fingerprint, key)
                prepared = _open(folder, key)
    if prepared is None:
        raise RuntimeError(f"{folder} was written but cannot be read back")
    log.info("corpus %s, fingerprint %s, in %s", corpus.kind, fingerprint[:16], folder)
    return prepared


def _key(fingerprint: str, identity: str, validation_fraction: float) -> str:
    parts = [FORMAT, fingerprint, identity, float(validation_fraction)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open(folder: Path, key: str) -> PreparedCorpus | None:
    """Open a prepared corpus; ``None`` if there is none or it is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        files = {name: TokenFile(folder / f"{name}.bin", **meta[name]) for name in _SPLITS}
        whole = meta["key"] == key and all(file.is_whole() for file in files.values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s) and will be built anew", folder, error)
        return None
    if not whole:
        log.warning("%s is damaged and will be built anew", folder)
        return None
    tokenizer = _load_own_tokenizer(folder)
    return PreparedCorpus(folder, files["train"], files["validation"], tokenizer, meta["fingerprint"], key)


def _load_own_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder / "tokenizer"), local_files_only=True)


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """Tell the user which option is at fault when the cache cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(
            "data.cache_dir", cache, f"a folder that can be written, with room for the tokens ({reason})"
        ) from error


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder.parent / f".{folder.name}.lock")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("another process is preparing %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _temporary(folder: Path) -> Path:
    """A new name beside ``folder`` under which it can be built; tells which folder it was to become."""
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"


def _unfinished(folder: Path) -> Path:
    """Where ``folder`` is built, the same name every time, so that it can be gone on with."""
    return folder.parent / f".{folder.name}.part"


def _remove_unfinished(folder: Path) -> None:
    """Remove what dead processes left in the cache. The caller holds the lock of ``folder``.

    What can be gone on with stays: that of ``folder`` itself, and that of others for a week.
    """
    old = time.time() - _UNFINISHED_SECONDS
    others = [part for part in folder.parent.glob(".*.part") if part != _unfinished(folder)]
    abandoned = [part for part in others if part.stat().st_mtime < old]
    for leftover in [*folder.parent.glob(".*.tmp"), *abandoned]:
        name = leftover.name.split(".")[1]
        if name == folder.name:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        try:
            with _lock(folder.parent / name).acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except filelock.Timeout:
            pass  # someone is at work there


def _build(
    folder: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast | None,
    config: DataConfig,
    fingerprint: str,
    key: str,
) -> None:
    """Write a prepared corpus to ``folder``. The caller holds its lock."""
    _remove_unfinished(folder)
    limit = validation_limit(corpus, config.validation_fraction)
    building = _unfinished(folder)
    mark = _read_mark(building)
    if mark is None:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
    else:
        log.info("going on after %d documents that were tokenised before", mark["documents"])
        tokenizer = _load_own_tokenizer(building)
    try:
        with tokenizer_threads(config.num_processes):
            if tokenizer is None:
                log.info("training a tokenizer of %d tokens", config.tokenizer_vocab_size)
                tokenizer = train_tokenizer(tokenizer_sample(corpus, limit), config.tokenizer_vocab_size)
            if mark is None:
                tokenizer.save_pretrained(str(building / "tokenizer"))
            _announce(corpus, folder.parent, token_dtype(vocabulary_size(tokenizer)))
            files = _tokenise(building, corpus, tokenizer, limit, fingerprint, mark)
        meta: dict[str, Any] = {"key": key, "fingerprint": fingerprint, "corpus": corpus.kind}
        for name, file in files.items():
            meta[name] = {
                "dtype": file.dtype,
                "count": file.count,
                "num_bytes": file.num_bytes,
                "num_documents": file.num_documents,
                "fingerprint": file.fingerprint,
            }
        (building / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (building / _MARK).unlink(missing_ok=True)
        _sync(building)
        if folder.exists():  # damaged, or it would have been opened
            damaged = _temporary(folder)
            os.replace(folder, damaged)
            shutil.rmtree(damaged)
        os.replace(building, folder)
        _sync_folder(folder.parent)
    except RequestError:  # the corpus will not do, so nothing goes on from here
        shutil.rmtree(building, ignore_errors=True)
        raise
    except BaseException:
        if _read_mark(building) is None:
            shutil.rmtree(building, ignore_errors=True)
        raise


def _read_mark(building: Path) -> dict[str, Any] | None:
    """How far the files in ``building`` are sure to be whole; ``None`` where they were not begun."""
    try:
        mark = json.loads((building / _MARK).read_text(encoding="utf-8"))
        sizes = {name: (building / f"{name}.bin").stat().st_size for name in _SPLITS}
    except (OSError, ValueError):
        return None
    return mark if all(sizes[name] >= mark[name]["size"] for name in _SPLITS) else None


def _set_mark(building: Path, documents: int, writers: Mapping[str, TokenWriter]) -> None:
    """Write down, after the files' own contents, that the first ``documents`` documents are in them."""
    mark: dict[str, Any] = {"documents": documents}
    for name, writer in writers.items():
        mark[name] = {**writer.mark(), "size": writer.count * writer.dtype.itemsize}
    write_json_atomic(building / _MARK, mark)


def _announce(corpus: Corpus, cache: Path, dtype: np.dtype) -> None:
    """Say how much is about to be read and written; warn where the disk has less room than that."""
    size = corpus.estimate_bytes()
    if size == 0:
        log.info("%s: a text of unknown size", corpus.kind)
        return
    needed = size // _BYTES_PER_TOKEN * dtype.itemsize
    free = shutil.disk_usage(cache).free
    log.info(
        "%s: about %s MB of text, %s MB as tokens; %s MB free in %s",
        corpus.kind,
        *(f"{amount / 1e6:,.1f}" for amount in (size, needed, free)),
        cache,
    )
    if needed > free:
        log.warning("%s will probably not hold the tokens", cache)


def _sync(folder: Path) -> None:
    """Make sure that the disk has everything in ``folder``."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _tokenise(
    folder: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    limit: int,
    fingerprint: str,
    mark: Mapping[str, Any] | None,
) -> dict[str, TokenFile]:
    """Write the token files of both splits, from ``mark`` on if there is one.

    While the library's threads encode one batch, this one reads the next and writes the last.
    """
    encoder = text_encoder(tokenizer)
    dtype = token_dtype(vocabulary_size(tokenizer))
    end = tokenizer.eos_token_id
    writers = {
        name: TokenWriter(folder / f"{name}.bin", dtype, end, None if mark is None else mark[name])
        for name in _SPLITS
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
        if written - marked >= _MARK_BYTES:
            _set_mark(folder, documents, writers)
            marked = written

    try:
        with _progress() as progress, ThreadPoolExecutor(max_workers=1) as thread:
            task = progress.add_task(
                f"tokenising {corpus.kind}", total=corpus.estimate_bytes() or None, completed=marked
            )
            running: tuple[list[Document], Future[list[list[int]]]] | None = None
            for batch in _batches(itertools.islice(corpus.documents(), documents, None)):
                following = (batch, thread.submit(encode, batch))
                if running is not None:
                    write(running[0], running[1].result())
                running = following
            if running is not None:
                write(running[0], running[1].result())
            progress.update(task, total=sum(writer.num_bytes for writer in writers.values()))
        return {name: writer.finished(fingerprint) for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
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
