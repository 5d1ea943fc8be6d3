"""Preparation of a corpus: tokenize it once per content, tokenizer, and split, then read it from the cache.

A prepared corpus is a folder in the cache:

    <corpus>-<key>/   train.bin  validation.bin  meta.json  tokenizer/

The folder gets its name once everything is on disk (:mod:`mom.data.cache`), so a folder with that name is complete.
The lengths of its files are checked anyway, and a damaged folder is rebuilt. An unfinished preparation is resumed
(:mod:`mom.data.tokenization`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mom.data.cache import cache_errors, cache_folder, locked, remove_unfinished, unfinished
from mom.data.corpora import Corpus, open_corpus
from mom.data.token_files import TokenFile, open_token_files, token_dtype
from mom.data.tokenization import (
    MARK,
    SPLITS,
    read_mark,
    tokenizer_sample,
    validation_limit,
    write_token_files,
)
from mom.data.tokenizer import (
    load_tokenizer,
    tokenizer_identity,
    tokenizer_threads,
    train_tokenizer,
    training_identity,
    vocabulary_size,
)
from mom.errors import UsageError
from mom.runs.files import replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

log = logging.getLogger(__name__)

# Part of every key; increase it when the same input gives different files.
FORMAT = 1

# For GPT-2's tokenizer on English text; used to estimate file sizes.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class PreparedCorpus:
    """A tokenized corpus, whose files are memory-mapped, so that they stay readable even if they are deleted.

    Args:
        folder: the folder in the cache.
        train, validation: tokens of different documents.
        tokenizer: the corpus's tokenizer.
        fingerprint: a hash of the corpus's content.
        key: a hash of content, tokenizer, and split: the same key means the same tokens in the same order.
    """

    folder: Path
    train: TokenFile
    validation: TokenFile
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str
    key: str

    def __post_init__(self) -> None:
        """Map the files."""
        for file in (self.train, self.validation):
            file.tokens  # noqa: B018 (cached)

    @property
    def vocab_size(self) -> int:
        """Number of rows in the token embedding."""
        return vocabulary_size(self.tokenizer)

    def split_files(self, split: str) -> list[TokenFile]:
        """Return the token files of ``train``, ``validation``, or ``all`` that contain tokens to predict.

        Raises:
            UsageError: there is no such file.
        """
        found = [getattr(self, name) for name in (SPLITS if split == "all" else (split,))]
        files = [file for file in found if file.count > 1]
        if not files:
            raise UsageError(
                f"task.split={split} needs at least two tokens, but the corpus has "
                f"{sum(file.count for file in found)} (data.validation_fraction sets the split)"
            )
        return files


def prepare(config: DataConfig) -> PreparedCorpus:
    """Tokenize the corpus of a configuration, or find it in the cache.

    The result depends only on the corpus, the tokenizer, ``tokenizer_vocab_size``, and ``validation_fraction``, not on
    the window length or the number of threads.

    Raises:
        UsageError: the corpus or the tokenizer cannot be read, or the cache cannot be written. At most an unfinished
            preparation, which a later call resumes, is left in the cache.
    """
    if config.corpus == "token_files":
        train, validation, file_tokenizer, key = open_token_files(config)
        return PreparedCorpus(train.path.parent, train, validation, file_tokenizer, train.fingerprint, key)
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
        with cache_errors(folder.parent), locked(folder):
            # Another process may have built it while this one was waiting for the lock.
            prepared = _open(folder, key)
            if prepared is None:
                _build(folder, corpus, tokenizer, config, fingerprint, key)
                prepared = _open(folder, key)
    if prepared is None:
        raise RuntimeError(f"cannot read back {folder}, which was just written")
    log.info("corpus %s, fingerprint %s, in %s", corpus.kind, fingerprint[:16], folder)
    return prepared


def _key(fingerprint: str, identity: str, validation_fraction: float) -> str:
    parts = [FORMAT, fingerprint, identity, float(validation_fraction)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open(folder: Path, key: str) -> PreparedCorpus | None:
    """Open a prepared corpus; return ``None`` if it does not exist or is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        files = {name: TokenFile(folder / f"{name}.bin", **meta[name]) for name in SPLITS}
        is_complete = meta["key"] == key and all(file.is_complete() for file in files.values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("rebuilding %s, which is damaged: %s", folder, error)
        return None
    if not is_complete:
        log.warning("rebuilding %s, which is damaged", folder)
        return None
    tokenizer = _load_saved_tokenizer(folder)
    return PreparedCorpus(folder, files["train"], files["validation"], tokenizer, meta["fingerprint"], key)


def _load_saved_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder / "tokenizer"), local_files_only=True)


def _build(
    folder: Path,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast | None,
    config: DataConfig,
    fingerprint: str,
    key: str,
) -> None:
    """Write a prepared corpus to ``folder``. The caller holds its lock."""
    remove_unfinished(folder)
    limit = validation_limit(corpus, config.validation_fraction)
    building = unfinished(folder)
    mark = read_mark(building)
    if mark is None:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
    else:
        log.info("resuming after %d tokenized documents", mark["documents"])
        tokenizer = _load_saved_tokenizer(building)
    try:
        with tokenizer_threads(config.num_processes):
            if tokenizer is None:
                log.info("training a tokenizer of %d tokens", config.tokenizer_vocab_size)
                tokenizer = train_tokenizer(tokenizer_sample(corpus, limit), config.tokenizer_vocab_size)
            if mark is None:
                tokenizer.save_pretrained(str(building / "tokenizer"))
            _log_size(corpus, folder.parent, token_dtype(vocabulary_size(tokenizer)))
            concurrent = 1 if config.num_processes == 1 else 2
            files = write_token_files(
                building, corpus, tokenizer, limit, fingerprint, mark, concurrent_batches=concurrent
            )
        meta: dict[str, Any] = {"key": key, "fingerprint": fingerprint, "corpus": corpus.kind}
        for name, file in files.items():
            fields = ("dtype", "count", "num_bytes", "num_documents", "fingerprint")
            meta[name] = {field: getattr(file, field) for field in fields}
        (building / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (building / MARK).unlink(missing_ok=True)
        replace_folder(building, folder)
    except UsageError:  # the corpus cannot be used, so there is nothing to resume
        shutil.rmtree(building, ignore_errors=True)
        raise
    except BaseException:
        if read_mark(building) is None:
            shutil.rmtree(building, ignore_errors=True)
        raise


def _log_size(corpus: Corpus, cache: Path, dtype: np.dtype) -> None:
    """Log the expected sizes of text and tokens; warn if the disk has too little space."""
    size = corpus.estimate_bytes()
    if size == 0:
        log.info("%s: text of unknown size", corpus.kind)
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
        log.warning("%s probably has too little space for the tokens", cache)
