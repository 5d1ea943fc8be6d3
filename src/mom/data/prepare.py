"""Preparation of a corpus: tokenize it once per content, tokenizer, and split, then read it from the cache.

A prepared corpus is a folder in the cache:

    <corpus>-<key>/   train.bin  validation.bin  meta.json  tokenizer/

The folder gets its name once everything is on disk (:mod:`mom.data.cache`), so a folder with that name is complete.
Its files are checked against their SHA-256 anyway, and a damaged folder is rebuilt. An unfinished preparation is
resumed (:mod:`mom.data.tokenization`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mom.data.cache import cache_errors, cache_folder, locked, remove_unfinished, unfinished
from mom.data.corpora import Corpus, open_corpus
from mom.data.token_files import LARGEST_UINT16_VOCABULARY, TokenFile, open_token_files, token_dtype
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
from mom.errors import UsageError, first_line
from mom.runs.files import disk_full, is_disk_full, parse_json, read_json, replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import DataConfig

log = logging.getLogger(__name__)

# Part of every key; increase it when the same input gives different files.
FORMAT = 1

META = "meta.json"
_SUMS = "sha256"
_TRAINED_KEY = "key_with_trained_tokenizer"  # the key for whoever gives the tokenizer that was trained here

# For GPT-2's tokenizer on English text; used to estimate file sizes.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class PreparedCorpus:
    """A tokenized corpus, whose files stay open, so that they stay readable even if they are deleted.

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
        """Open the files."""
        for file in (self.train, self.validation):
            file.open()

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


def prepare_corpora(config: DataConfig) -> dict[str, PreparedCorpus]:
    """Prepare the corpora of a mixture, by name; one without a name if the configuration is that of one corpus.

    Without ``data.tokenizer``, the tokenizer of a mixture is trained on its first corpus.

    Raises:
        UsageError: see :func:`prepare`.
    """
    if config.corpus != "mixture":
        return {"": prepare(config)}
    corpora: dict[str, PreparedCorpus] = {}
    for name, (part, _) in config.parts().items():
        if corpora and part.tokenizer is None:
            first = next(iter(corpora.values()))
            part = dataclasses.replace(part, tokenizer=str(first.folder / "tokenizer"))
        corpora[name] = prepare(part)
    return corpora


def combined_hash(config: DataConfig, hashes: Sequence[str]) -> str:
    """Return the hash of a corpus, or one of all corpora of a mixture and their weights, in their order."""
    parts = config.parts()
    if not parts:
        return hashes[0]
    given = [[name, part.weight, own] for (name, part), own in zip(parts.items(), hashes, strict=True)]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def prepare(config: DataConfig) -> PreparedCorpus:
    """Tokenize the corpus of a configuration, or find it in the cache.

    The result depends only on the corpus, the tokenizer, ``tokenizer_vocab_size``, and ``validation_fraction``, not on
    the window length or the number of threads.

    Raises:
        UsageError: the corpus or the tokenizer cannot be read, or the cache cannot be written. At most an unfinished
            preparation, which a later call resumes, is left in the cache.
    """
    if config.corpus == "mixture":
        raise UsageError(
            "data=mixture is for task=pretrain, evaluate, and analyze; choose one of its corpora"
        )
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
    if prepared is None and tokenizer is not None:
        prepared = _open_trained(folder.parent, corpus.kind, key)
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
        meta = parse_json((folder / META).read_bytes())
        recorded = meta.pop(_SUMS, {})
        files = {name: TokenFile(folder / f"{name}.bin", **meta[name]) for name in SPLITS}
        if key not in (meta["key"], meta.get(_TRAINED_KEY)):
            raise ValueError("it is that of another corpus")
        sums = _sums(folder, meta)
        if wrong := sorted(name for name in {*sums, *recorded} if sums.get(name) != recorded.get(name)):
            raise ValueError(f"{wrong[0]} has another SHA-256" if recorded else "it has no checksums")
        tokenizer = _load_saved_tokenizer(folder)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever reading a damaged file raises
        log.warning("rebuilding %s, which is damaged or of an earlier version: %s", folder, first_line(error))
        return None
    return PreparedCorpus(folder, files["train"], files["validation"], tokenizer, meta["fingerprint"], key)


def _open_trained(cache: Path, kind: str, key: str) -> PreparedCorpus | None:
    """Open the corpus of this key among those whose tokenizer was trained on them; ``None`` if there is none.

    Their folders are named after the training's settings, because they get their names before the tokenizer exists. A
    run saves its tokenizer, and later tasks give that one.
    """
    metas = (
        path for path in sorted(cache.glob(f"{kind}-*/{META}")) if read_json(path).get(_TRAINED_KEY) == key
    )
    return next((_open(path.parent, key) for path in metas), None)


def _sums(folder: Path, meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of every file of a prepared corpus, and of the other fields of its ``meta.json``."""
    sums = {META: hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in (META, MARK)
    ):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        sums[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return sums


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
            _log_size(corpus, folder.parent, tokenizer)
            concurrent = 1 if config.num_processes == 1 else 2
            files = write_token_files(
                building, corpus, tokenizer, limit, fingerprint, mark, concurrent_batches=concurrent
            )
        meta: dict[str, Any] = {"key": key, "fingerprint": fingerprint, "corpus": corpus.kind}
        if config.tokenizer is None:
            meta[_TRAINED_KEY] = _key(fingerprint, tokenizer_identity(tokenizer), config.validation_fraction)
        for name, file in files.items():
            fields = ("dtype", "count", "num_bytes", "num_documents", "fingerprint")
            meta[name] = {field: getattr(file, field) for field in fields}
        meta[_SUMS] = _sums(building, meta)
        (building / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (building / MARK).unlink(missing_ok=True)
        replace_folder(building, folder)
    except UsageError:  # the corpus cannot be used, so there is nothing to resume
        shutil.rmtree(building, ignore_errors=True)
        raise
    except BaseException as error:
        if read_mark(building) is None:
            shutil.rmtree(building, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(folder, f"about {_token_bytes(corpus, tokenizer):,}") from error
        raise


def _token_bytes(corpus: Corpus, tokenizer: PreTrainedTokenizerFast | None) -> int:
    """Estimate the bytes of a corpus as tokens."""
    size = LARGEST_UINT16_VOCABULARY if tokenizer is None else vocabulary_size(tokenizer)
    return corpus.estimate_bytes() // _BYTES_PER_TOKEN * token_dtype(size).itemsize


def _log_size(corpus: Corpus, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Log the expected sizes of text and tokens; warn if the disk has too little space."""
    size = corpus.estimate_bytes()
    if size == 0:
        log.info("%s: text of unknown size", corpus.kind)
        return
    needed = _token_bytes(corpus, tokenizer)
    free = shutil.disk_usage(cache).free
    log.info(
        "%s: about %s of text, %s as tokens; %s free in %s",
        corpus.kind,
        *map(decimal, (size, needed, free)),
        cache,
    )
    if needed > free:
        log.warning("%s probably has too little space for the tokens", cache)
