"""XSum (Narayan et al. 2018, arXiv 1808.08745): documents and their one-sentence summaries."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from mom.data.examples import Batch, ExamplesDataModule, held_out, pad
from mom.data.rows import Row, file_kind, find_split, read_hub, read_rows
from mom.data.tokenizer import TextEncoder
from mom.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import XsumConfig

log = logging.getLogger(__name__)

HUB_NAME = "EdinburghNLP/xsum"
_ID = ("id",)
_SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Article:
    """A document with its one-sentence summary, its ID or else its row in the file, and, for errors, its place."""

    document: str
    summary: str
    id: str
    place: str


def load_xsum(config: XsumConfig) -> dict[str, list[Article]]:
    """Read the splits ``train``, ``validation``, and ``test``, which a local folder may lack.

    A single file is split by a hash of its documents: ``data.validation_fraction`` of them are for validation. Articles
    without a document or a summary, of which the dataset has one, are skipped, and their number is logged.

    Raises:
        UsageError: a file, column, or text is missing, or a split is empty.
    """
    path = None if config.path is None else Path(config.path).expanduser()
    if path is None:
        tables = read_hub(HUB_NAME, ("train", "validation", "test"))
        splits = {name: _articles(rows, config) for name, rows in tables.items()}
    elif path.is_file():
        splits = _read_file(path, config)
    elif path.is_dir():
        splits = _read_folder(path, config)
    else:
        raise UsageError(
            f"data.path must be a .jsonl, .csv or .parquet file, a folder of them, or null for the Hub, got {path}, "
            "which does not exist"
        )
    for name, articles in splits.items():
        if not articles:
            raise UsageError(f"cannot read data.path: {config.path or HUB_NAME} has no rows for {name}")
    return splits


def _read_file(file: Path, config: XsumConfig) -> dict[str, list[Article]]:
    if file_kind(file) not in _SUFFIXES:
        raise UsageError(f"data.path must be a file ending in {' or '.join(_SUFFIXES)}, got {file}")
    articles = _articles(read_rows(file, config.columns, optional=[_ID]), config)
    is_held_out = held_out([article.document for article in articles], config.validation_fraction)
    return {
        "train": [article for article, held in zip(articles, is_held_out, strict=True) if not held],
        "validation": [article for article, held in zip(articles, is_held_out, strict=True) if held],
    }


def _read_folder(folder: Path, config: XsumConfig) -> dict[str, list[Article]]:
    splits = {}
    for split in ("train", "validation", "test"):
        stems = (split, "dev") if split == "validation" else (split,)
        files = find_split(folder, stems, _SUFFIXES)
        if not files and split != "test":
            raise UsageError(
                f"data.path must be a folder with {split}.jsonl, {split}.csv or {split}.parquet, got {folder}"
            )
        if files:
            rows = (read_rows(file, config.columns, optional=[_ID]) for file in files)
            splits[split] = _articles(itertools.chain.from_iterable(rows), config)
    return splits


def _articles(rows: Iterable[Row], config: XsumConfig) -> list[Article]:
    articles, skipped = [], []
    for row in rows:
        document, summary = (row.text(names) for names in config.columns)
        if document.strip() and summary.strip():
            given = row.get(_ID)
            articles.append(
                Article(document, summary, str(row.number if given is None else given), row.place)
            )
        else:
            skipped.append(row.place)
    if skipped:
        log.warning(
            "skipped %d articles without a document or a summary, such as %s", len(skipped), skipped[0]
        )
    return articles


@dataclass(frozen=True)
class EncodedArticle:
    """Token IDs: the document and separator, and the summary and end of text."""

    prompt: list[int]
    summary: list[int]


class XsumDataModule(ExamplesDataModule):
    """Documents and summaries as sequences: document, separator, summary, end of text.

    Only the summary and the end of text are predicted: the labels before them are -100. Long documents are truncated,
    summaries never are. Batches are ``{"input_ids", "attention_mask", "labels"}``, int64 (B, T) padded on the right.

    Raises:
        UsageError: see :func:`load_xsum`, or a summary does not fit the sequence.
    """

    def __init__(self, config: XsumConfig, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encoder = TextEncoder(tokenizer)
        self.separator: list[int] = self._encoder.encode([config.separator])[0]
        self.articles: dict[str, list[Article]] = {}
        super().__init__(config, seed, tokenizer)

    def encode(self) -> dict[str, list[EncodedArticle]]:
        """Read the articles and tokenize every split."""
        self.articles = load_xsum(self.config)
        return {name: self._encode(name, articles) for name, articles in self.articles.items()}

    def _encode(self, split: str, articles: Sequence[Article]) -> list[EncodedArticle]:
        documents = self._encoder.encode([article.document for article in articles])
        # With a space before the first word, as inside a text.
        summaries = self._encoder.encode([" " + article.summary.strip() for article in articles])
        encoded, truncated = [], 0
        for article, document, summary in zip(articles, documents, summaries, strict=True):
            target = [*summary, self.tokenizer.eos_token_id]
            room = self.config.window - len(self.separator) - len(target)
            if room < 1:
                raise UsageError(
                    f"data.sequence_length must leave room for the summary of {len(summary)} tokens in "
                    f"{article.place}, the separator, and part of the document, got {self.config.window}"
                )
            truncated += len(document) > room
            encoded.append(EncodedArticle([*document[:room], *self.separator], target))
        log.info(
            "xsum %s: %d rows, %d documents truncated to fit %d tokens",
            *(split, len(articles), truncated, self.config.window),
        )
        return encoded

    def prompts(self, split: str) -> list[list[int]]:
        """Return the tokens of each document, truncated to leave room for ``max_summary_tokens``, and the separator."""
        room = self.config.window - len(self.separator) - self.config.max_summary_tokens
        documents = self._encoder.encode([article.document for article in self.articles[split]])
        return [[*document[:room], *self.separator] for document in documents]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of this rank's validation batches."""
        return self.rank_dataloader("validation")

    def collate(self, rows: Sequence[EncodedArticle]) -> Batch:
        """Pad encoded examples into a batch; see the class."""
        batch = pad([[*row.prompt, *row.summary] for row in rows], self.tokenizer.eos_token_id)
        labels = pad([[-100] * len(row.prompt) + row.summary for row in rows], -100)["input_ids"]
        return {**batch, "labels": labels}

    def content(self, example: EncodedArticle) -> Iterable[float]:
        """Return the length of the prompt and the tokens of an example."""
        return (len(example.prompt), *example.prompt, *example.summary)
