"""Tokens on disk: a flat array of IDs, written here or by other programs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from mom.data.cache import cache_errors, cache_folder
from mom.data.tokenizer import load_tokenizer, tokenizer_identity, vocabulary_size
from mom.errors import UsageError
from mom.runs.files import read_json, write_json_atomic

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

log = logging.getLogger(__name__)

Loss = TypeVar("Loss", float, "Tensor")

LARGEST_UINT16_VOCABULARY = 1 << 16

_VALIDATION_NAMES = ("val.bin", "validation.bin")

_BLOCK_TOKENS = 1 << 22
_SCANS = "token_files"  # folder of the cache


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type of a token on disk: uint16, or uint32 for vocabularies above 65,536."""
    return np.dtype(np.uint16 if vocab_size <= LARGEST_UINT16_VOCABULARY else np.uint32)


@dataclass(frozen=True)
class TokenFile:
    """A file of token IDs in the machine's byte order, one document after another.

    Only the tokens in use are read, from a file that stays open, so that they stay readable even if it is deleted. The
    file is not memory-mapped: the process would end without a word if another program cut it off. A pickled TokenFile
    holds its path, not its tokens.

    Args:
        path: the file.
        dtype: ``uint16`` or ``uint32``.
        count: number of tokens, including the end-of-text token of each document.
        num_bytes: UTF-8 bytes of their text, not counting end-of-text tokens; 0 if unknown.
        num_documents: number of documents; 0 if unknown.
        fingerprint: see :meth:`mom.data.corpora.Corpus.fingerprint`.
    """

    path: Path
    dtype: str
    count: int
    num_bytes: int
    num_documents: int
    fingerprint: str

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb", buffering=0)

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, (count,)."""
        return self.read(0, self.count)

    def open(self) -> TokenFile:
        """Open the file, and return it.

        Raises:
            UsageError: it has the wrong length.
        """
        if not self.is_complete():
            raise _cut_off(self)
        self._file  # noqa: B018 (cached)
        return self

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the tokens from ``start`` up to ``stop`` or the end, (stop - start,).

        Raises:
            UsageError: the file is shorter than it was.
        """
        size = np.dtype(self.dtype).itemsize
        first, last = start * size, min(stop, self.count) * size
        parts = []
        while first < last and (part := _read_at(self._file, last - first, first)):
            parts.append(part)
            first += len(part)
        if first < last:
            raise _cut_off(self)
        return np.frombuffer(b"".join(parts), dtype=self.dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all tokens, a few million at a time."""
        for start in range(0, self.count, _BLOCK_TOKENS):
            yield self.read(start, start + _BLOCK_TOKENS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def is_complete(self) -> bool:
        """Return whether the file exists with the right length."""
        try:
            return self.path.stat().st_size == self.count * np.dtype(self.dtype).itemsize
        except OSError:
            return False

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token; end-of-text tokens count as tokens of 0 bytes."""
        return self.num_bytes / self.count if self.count else math.nan


def _read_at(file: BinaryIO, size: int, start: int) -> bytes:
    """Read up to ``size`` bytes from ``start``; processes that were forked share the file, but not a position."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, start)
    file.seek(start)  # Windows, which does not fork
    return file.read(size)


def _cut_off(file: TokenFile) -> UsageError:
    return UsageError(
        f"cannot read data.path: {file.path} must hold {file.count:,} tokens of type {file.dtype}; it was changed "
        "while it was in use"
    )


def bits_per_byte(loss: Loss, bytes_per_token: float) -> Loss:
    """Convert a cross-entropy to bits per UTF-8 byte of text, a unit that does not depend on the tokenizer.

    End-of-text tokens add to the loss, but not to the bytes, so a corpus of short documents has a slightly higher value
    than its texts alone.

    Args:
        loss: mean cross-entropy in nats per token.
        bytes_per_token: see :attr:`TokenFile.bytes_per_token`.
    """
    return loss / (math.log(2) * bytes_per_token)


class TokenWriter:
    """A writer of a :class:`TokenFile`, which syncs the file to disk when closed.

    Args:
        path: the file to create.
        dtype: the type of a token.
        end_of_text: the ID that follows every document.
        mark: a result of :meth:`mark`, at which to continue an unfinished file; everything after it is cut off.
    """

    def __init__(
        self, path: Path, dtype: np.dtype, end_of_text: int, mark: Mapping[str, int] | None = None
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.end_of_text = end_of_text
        self.count = self.num_bytes = self.num_documents = 0
        self._stream = path.open("xb" if mark is None else "r+b")
        if mark is not None:
            self.count, self.num_bytes = mark["count"], mark["num_bytes"]
            self.num_documents = mark["num_documents"]
            self._stream.truncate(self.count * dtype.itemsize)
            self._stream.seek(0, os.SEEK_END)

    def mark(self) -> dict[str, int]:
        """Sync the file to disk and return its counts of tokens, bytes, and documents."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return {"count": self.count, "num_bytes": self.num_bytes, "num_documents": self.num_documents}

    def write(self, documents: Iterable[tuple[list[int], int]]) -> None:
        """Append documents, given as (token IDs, UTF-8 bytes of their text)."""
        ids: list[int] = []
        for document, num_bytes in documents:
            ids += document
            ids.append(self.end_of_text)
            self.num_bytes += num_bytes
            self.num_documents += 1
        self._stream.write(np.array(ids, dtype=self.dtype).tobytes())
        self.count += len(ids)

    def close(self) -> None:
        """Sync the file to disk and close it; a second call does nothing."""
        if self._stream.closed:
            return
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def finish(self, fingerprint: str) -> TokenFile:
        """Close the file and return its description."""
        self.close()
        return TokenFile(
            self.path, str(self.dtype), self.count, self.num_bytes, self.num_documents, fingerprint
        )


def open_token_files(config: DataConfig) -> tuple[TokenFile, TokenFile, PreTrainedTokenizerFast, str]:
    """Open the token files in ``data.path``, which hold IDs of ``data.tokenizer``.

    All IDs are checked once. Documents are not counted. Bytes of text are counted for the validation file if
    the tokenizer is byte-level.

    Returns:
        The training tokens, the validation tokens, the tokenizer, and a key that is the same for the same files.

    Raises:
        UsageError: there are no such files, or they do not match the tokenizer.
    """
    assert config.path is not None and config.tokenizer is not None
    folder = Path(config.path).expanduser()
    tokenizer = load_tokenizer(config.tokenizer)
    validation = next((folder / name for name in _VALIDATION_NAMES if (folder / name).is_file()), None)
    if validation is None or not (folder / "train.bin").is_file():
        raise UsageError(f"data.path must be a folder with train.bin and val.bin, got {config.path}")
    cache = cache_folder(config)
    train_file = _open(folder / "train.bin", tokenizer, config.tokenizer, cache, count_bytes=False)
    validation_file = _open(validation, tokenizer, config.tokenizer, cache, count_bytes=True)
    parts = (train_file.fingerprint, validation_file.fingerprint, tokenizer_identity(tokenizer))
    return train_file, validation_file, tokenizer, hashlib.sha256("".join(parts).encode()).hexdigest()


def _open(
    path: Path, tokenizer: PreTrainedTokenizerFast, name: str, cache: Path, *, count_bytes: bool
) -> TokenFile:
    size = vocabulary_size(tokenizer)
    dtype = token_dtype(size)
    num_bytes = path.stat().st_size
    if num_bytes % dtype.itemsize:
        raise UsageError(
            f"cannot read data.path: {path} must be a file of {dtype} tokens of {name}, got {num_bytes} bytes"
        )
    file = TokenFile(path, str(dtype), num_bytes // dtype.itemsize, 0, 0, "").open()
    content, largest = _scan(file, cache)
    if largest >= size:
        raise UsageError(
            f"data.tokenizer must be the tokenizer of {path}, which has the ID {largest}, got {name} with {size} tokens"
        )
    file = dataclasses.replace(file, fingerprint=content)
    return with_bytes(file, tokenizer) if count_bytes else file


def _scan(file: TokenFile, cache: Path) -> tuple[str, int]:
    """Return the SHA-256 and the largest ID of a file, -1 if it is empty.

    This reads the file once: the result is kept in the cache until the file's size or time of change differ.
    """
    found = file.path.stat()
    version = {"size": found.st_size, "changed": found.st_mtime_ns, "dtype": file.dtype}
    place = hashlib.sha256(str(file.path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    known = cache / _SCANS / f"{place}.json"
    if (record := read_json(known)).items() >= version.items():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return str(record["sha256"]), int(record["largest"])
    log.info("checking all tokens of %s", file.path)
    digest, largest = hashlib.sha256(file.dtype.encode()), -1
    for block in file.blocks():
        digest.update(block.tobytes())
        largest = max(largest, int(block.max()))
    with (
        contextlib.suppress(UsageError),
        cache_errors(known.parent),
    ):  # without a cache, it is read every time
        write_json_atomic(known, {**version, "sha256": digest.hexdigest(), "largest": largest})
    return digest.hexdigest(), largest


def with_bytes(file: TokenFile, tokenizer: PreTrainedTokenizerFast) -> TokenFile:
    """Return a file with the bytes of its text, counted if they are unknown and the tokenizer is byte-level."""
    return file if file.num_bytes else dataclasses.replace(file, num_bytes=_text_bytes(file, tokenizer))


def _text_bytes(file: TokenFile, tokenizer: PreTrainedTokenizerFast) -> int:
    """Count the UTF-8 bytes of the tokens' text; 0 if the tokenizer is not byte-level."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return 0
    sizes = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        sizes[number] = len(token)  # a character per byte
    sizes[tokenizer.all_special_ids] = 0
    return sum(int(sizes[block].sum()) for block in file.blocks())
