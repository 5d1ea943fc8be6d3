"""Tokens on disk: a flat, memory-mapped array of IDs, written here or by other programs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mom.data.tokenizer import load_tokenizer, tokenizer_identity, vocabulary_size
from mom.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

Loss = TypeVar("Loss", float, "Tensor")

LARGEST_UINT16_VOCABULARY = 1 << 16

_VALIDATION_NAMES = ("val.bin", "validation.bin")

# The blocks that are read to identify a file and to check its IDs against the tokenizer.
_BLOCKS = 64
_BLOCK_TOKENS = 1 << 16


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type of a token on disk: uint16, or uint32 for vocabularies above 65,536."""
    return np.dtype(np.uint16 if vocab_size <= LARGEST_UINT16_VOCABULARY else np.uint32)


@dataclass(frozen=True)
class TokenFile:
    """A file of token IDs in the machine's byte order, one document after another.

    The file is memory-mapped, so only the pages in use are read. A pickled TokenFile holds its path, not its tokens.

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
    def tokens(self) -> np.ndarray:
        """All tokens, (count,), read-only.

        Raises:
            ValueError: the file has the wrong length.
        """
        if not self.is_complete():
            raise ValueError(f"{self.path} does not hold {self.count} tokens of type {self.dtype}")
        if self.count == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype=self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "tokens"}

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

    Documents are not counted, because that would read everything. Bytes of text are counted for the validation file if
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
    train_file = _open(folder / "train.bin", tokenizer, config.tokenizer, count_bytes=False)
    validation_file = _open(validation, tokenizer, config.tokenizer, count_bytes=True)
    parts = (train_file.fingerprint, validation_file.fingerprint, tokenizer_identity(tokenizer))
    return train_file, validation_file, tokenizer, hashlib.sha256("".join(parts).encode()).hexdigest()


def _open(path: Path, tokenizer: PreTrainedTokenizerFast, name: str, *, count_bytes: bool) -> TokenFile:
    dtype = token_dtype(vocabulary_size(tokenizer))
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise UsageError(
            f"cannot read data.path: {path} must be a file of {dtype} tokens of {name}, got {size} bytes"
        )
    count = size // dtype.itemsize
    file = TokenFile(path, str(dtype), count, 0, 0, "")
    digest = hashlib.sha256(f"{dtype} {count}".encode())
    for start in sorted({int(start) for start in np.linspace(0, max(0, count - _BLOCK_TOKENS), _BLOCKS)}):
        block = file.tokens[start : start + _BLOCK_TOKENS]
        if len(block) and int(block.max()) >= vocabulary_size(tokenizer):
            raise UsageError(
                f"data.tokenizer must be the tokenizer of {path}, which has the ID {int(block.max())}, got {name} "
                f"with {vocabulary_size(tokenizer)} tokens"
            )
        digest.update(block.tobytes())
    file = dataclasses.replace(file, fingerprint=digest.hexdigest())
    return with_bytes(file, tokenizer) if count_bytes else file


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
    blocks = range(0, file.count, 1 << 22)
    return sum(int(sizes[file.tokens[start : start + (1 << 22)]].sum()) for start in blocks)
