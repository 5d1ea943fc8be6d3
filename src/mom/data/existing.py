"""Token files that exist: ``train.bin`` and ``val.bin``, as many training scripts write them, read as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mom.data.token_files import TokenFile, token_dtype
from mom.data.tokenizer import load_tokenizer, tokenizer_identity, vocabulary_size
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

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
