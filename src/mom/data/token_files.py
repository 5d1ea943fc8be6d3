"""Tokens on disk: one flat array of ids, memory-mapped, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mom.data.tokenizer import load_tokenizer, tokenizer_identity, vocabulary_size
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

LARGEST_UINT16_VOCABULARY = 65_535


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of a token on disk: 2 bytes, or 4 for vocabularies above 65,535."""
    return np.dtype(np.uint16 if vocab_size <= LARGEST_UINT16_VOCABULARY else np.uint32)


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids in the machine's byte order, documents one after the other.

    Opening it reads nothing; the operating system pages in what is used. Pickled it carries its path, not
    its tokens.

    Args:
        path: where it is.
        dtype: ``uint16`` or ``uint32``.
        count: tokens in it, each document's end-of-text token among them.
        num_bytes: UTF-8 bytes of the text they stand for; the end-of-text tokens stand for none. 0: not known.
        num_documents: documents in it. 0: not known.
        fingerprint: of the corpus, see :meth:`mom.data.corpora.Corpus.fingerprint`.
    """

    path: Path
    dtype: str
    count: int
    num_bytes: int
    num_documents: int
    fingerprint: str

    @cached_property
    def tokens(self) -> np.ndarray:
        """All tokens, [count], read-only.

        Raises:
            ValueError: the file is not as long as it should be.
        """
        if not self.is_whole():
            raise ValueError(f"{self.path} does not hold {self.count} tokens of type {self.dtype}")
        if self.count == 0:  # nothing that could be mapped
            return np.empty(0, dtype=self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "tokens"}

    def is_whole(self) -> bool:
        """Whether the file is there and exactly as long as it should be."""
        try:
            return self.path.stat().st_size == self.count * np.dtype(self.dtype).itemsize
        except OSError:
            return False

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, end-of-text tokens counted as tokens of no bytes."""
        return self.num_bytes / self.count if self.count else math.nan


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Turn a cross-entropy into bits per UTF-8 byte of text, a unit that no tokenizer changes.

    The end of a document is paid for (its token is predicted like any other) and adds no byte, so that a
    corpus of short documents costs a little more per byte than its texts alone.

    Args:
        loss: mean cross-entropy in nats per token.
        bytes_per_token: as in :attr:`TokenFile.bytes_per_token`.
    """
    return loss / math.log(2) / bytes_per_token


class TokenWriter:
    """Writes a :class:`TokenFile`, document by document. Closing it makes sure that the disk has it.

    Args:
        path: the file to create.
        dtype: of a token.
        end_of_text: the id that follows every document.
        mark: as :meth:`mark` gave it, to go on there with a file that was begun; what follows is cut off.
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
        """Make sure that the disk has what was written, and say how much that is."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return {"count": self.count, "num_bytes": self.num_bytes, "num_documents": self.num_documents}

    def write(self, documents: Iterable[tuple[list[int], int]]) -> None:
        """Append documents, each given as its ids and the UTF-8 bytes of its text."""
        ids: list[int] = []
        for document, num_bytes in documents:
            ids += document
            ids.append(self.end_of_text)
            self.num_bytes += num_bytes
            self.num_documents += 1
        self._stream.write(np.array(ids, dtype=self.dtype).tobytes())
        self.count += len(ids)

    def close(self) -> None:
        """Flush to the disk and close; harmless when closed already."""
        if self._stream.closed:
            return
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        finally:
            self._stream.close()

    def finished(self, fingerprint: str) -> TokenFile:
        """Close, and describe what was written."""
        self.close()
        return TokenFile(
            self.path, str(self.dtype), self.count, self.num_bytes, self.num_documents, fingerprint
        )


_VALIDATION_NAMES = ("val.bin", "validation.bin")


# Blocks that are looked at to identify a file and to see that its ids are the tokenizer's.
_BLOCK_TOKENS = 1 << 16


_BLOCKS = 64


def open_token_files(config: DataConfig) -> tuple[TokenFile, TokenFile, PreTrainedTokenizerFast, str]:
    """Open the token files in ``data.path``: ids of ``data.tokenizer``, uint16, or uint32 above 65,535.

    The number of documents is not known without reading everything; the bytes of text are counted for the
    validation file, where the tokenizer's tokens are bytes.

    Returns:
        Training tokens, validation tokens, the tokenizer, and a key that is the same for the same files.

    Raises:
        RequestError: no such files, or not of this tokenizer.
    """
    assert config.path is not None and config.tokenizer is not None
    folder = Path(config.path).expanduser()
    tokenizer = load_tokenizer(config.tokenizer)
    validation = next((folder / name for name in _VALIDATION_NAMES if (folder / name).is_file()), None)
    if validation is None or not (folder / "train.bin").is_file():
        raise RequestError("data.path", config.path, "a folder with train.bin and val.bin")
    train_file = _open(folder / "train.bin", tokenizer, config.tokenizer, count_bytes=False)
    validation_file = _open(validation, tokenizer, config.tokenizer, count_bytes=True)
    parts = (train_file.fingerprint, validation_file.fingerprint, tokenizer_identity(tokenizer))
    return train_file, validation_file, tokenizer, hashlib.sha256("".join(parts).encode()).hexdigest()


def _open(path: Path, tokenizer: PreTrainedTokenizerFast, name: str, *, count_bytes: bool) -> TokenFile:
    dtype = token_dtype(vocabulary_size(tokenizer))
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise RequestError("data.path", f"{path} ({size} bytes)", f"a file of {dtype} tokens of {name}")
    count = size // dtype.itemsize
    file = TokenFile(path, str(dtype), count, 0, 0, "")
    digest = hashlib.sha256(f"{dtype} {count}".encode())
    for start in sorted({int(start) for start in np.linspace(0, max(0, count - _BLOCK_TOKENS), _BLOCKS)}):
        block = file.tokens[start : start + _BLOCK_TOKENS]
        if len(block) and int(block.max()) >= vocabulary_size(tokenizer):
            raise RequestError(
                "data.tokenizer",
                f"{name} ({vocabulary_size(tokenizer)} tokens)",
                f"the tokenizer that made {path}, which holds the id {int(block.max())}",
            )
        digest.update(block.tobytes())
    num_bytes = _text_bytes(file, tokenizer) if count_bytes else 0
    return TokenFile(path, str(dtype), count, num_bytes, 0, digest.hexdigest())


def _text_bytes(file: TokenFile, tokenizer: PreTrainedTokenizerFast) -> int:
    """UTF-8 bytes of the text that the tokens stand for; 0 where tokens are not bytes."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return 0
    sizes = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        sizes[number] = len(token)  # a character for each byte
    sizes[tokenizer.all_special_ids] = 0
    blocks = range(0, file.count, 1 << 22)
    return sum(int(sizes[file.tokens[start : start + (1 << 22)]].sum()) for start in blocks)
