"""From a corpus to token files: once per content, tokenizer and split; afterwards from the cache.

A prepared corpus is a folder in the cache:

    <corpus>-<key>/   train.bin  validation.bin  meta.json  tokenizer/

It is renamed when everything is on the disk (:mod:`mom.data.cache`), so that a folder that stands there is whole;
its files' lengths are checked all the same, and a damaged one is built anew. What was begun and not finished is gone
on with (:mod:`mom.data.tokenization`).
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
from mom.data.tokenization import MARK, SPLITS, read_mark, tokenize, tokenizer_sample, validation_limit
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

# Part of every key: raise it when the same input would give other files.
FORMAT = 1

# What GPT-2's tokenizer makes of English text, for an estimate of the files' size.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus as tokens, both files mapped: what happens to their names from now on does not matter.

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

    def __post_init__(self) -> None:
        """Map the files."""
        for file in (self.train, self.validation):
            file.tokens  # noqa: B018 (it is kept)

    @property
    def vocab_size(self) -> int:
        """Rows an embedding of these tokens needs."""
        return vocabulary_size(self.tokenizer)


def prepare(config: DataConfig) -> PreparedCorpus:
    """Tokenize the corpus that ``config`` names, or find it in the cache.

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
        with cache_errors(folder.parent), locked(folder):
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
        files = {name: TokenFile(folder / f"{name}.bin", **meta[name]) for name in SPLITS}
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
        log.info("going on after %d documents that were tokenized before", mark["documents"])
        tokenizer = _load_own_tokenizer(building)
    try:
        with tokenizer_threads(config.num_processes):
            if tokenizer is None:
                log.info("training a tokenizer of %d tokens", config.tokenizer_vocab_size)
                tokenizer = train_tokenizer(tokenizer_sample(corpus, limit), config.tokenizer_vocab_size)
            if mark is None:
                tokenizer.save_pretrained(str(building / "tokenizer"))
            _announce(corpus, folder.parent, token_dtype(vocabulary_size(tokenizer)))
            at_once = 1 if config.num_processes == 1 else 2
            files = tokenize(building, corpus, tokenizer, limit, fingerprint, mark, encoding_at_once=at_once)
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
        (building / MARK).unlink(missing_ok=True)
        replace_folder(building, folder)
    except UsageError:  # the corpus will not do, so nothing goes on from here
        shutil.rmtree(building, ignore_errors=True)
        raise
    except BaseException:
        if read_mark(building) is None:
            shutil.rmtree(building, ignore_errors=True)
        raise


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
