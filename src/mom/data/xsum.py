"""XSum: documents and their one-sentence summaries (Narayan et al. 2018, arXiv 1808.08745)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from mom.data.examples import Batch, ExamplesDataModule, pad
from mom.data.rows import OPTION, Row, read_table
from mom.data.tokenization import split_position
from mom.data.tokenizer import text_encoder
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import XsumConfig

log = logging.getLogger(__name__)

HUB_NAME = "EdinburghNLP/xsum"
COLUMNS = (("document",), ("summary",), ("id",))
_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Article:
    """A document, its summary, its name in the data set, and where it was read."""

    document: str
    summary: str
    id: str
    place: str


def load_xsum(config: XsumConfig) -> dict[str, list[Article]]:
    """Read the splits ``train``, ``validation`` and, if there is one, ``test``.

    A single file is split by its documents' texts: ``data.validation_fraction`` of them are for validation.

    Raises:
        RequestError: ``data.path``, with file and row, if there are no such files, columns or texts, or if a
            split is empty.
    """
    path = None if config.path is None else Path(config.path).expanduser()
    if path is None:
        splits = _from_hub()
    elif path.is_file():
        splits = _from_file(path, config.validation_fraction)
    elif path.is_dir():
        splits = _from_folder(path)
    else:
        raise RequestError(
            OPTION, f"{path} (not found)", "a .jsonl or .parquet file, a folder of them, or null"
        )
    for name, articles in splits.items():
        if not articles:
            raise RequestError(OPTION, f"{config.path or HUB_NAME} (no row in {name})", "a split with rows")
    return splits


def _from_file(file: Path, fraction: float) -> dict[str, list[Article]]:
    if file.suffix not in _SUFFIXES:
        raise RequestError(OPTION, file, f"a file ending in {' or '.join(_SUFFIXES)}")
    articles = _articles(read_table(file, COLUMNS)[0])
    ordered = sorted(split_position(article.document) for article in articles)
    limit = ordered[min(len(ordered) - 1, max(1, round(fraction * len(ordered))))] if ordered else 0
    held_out = [article for article in articles if split_position(article.document) < limit]
    return {"train": [a for a in articles if split_position(a.document) >= limit], "validation": held_out}


def _from_folder(folder: Path) -> dict[str, list[Article]]:
    splits = {}
    for split in ("train", "validation", "test"):
        stems = (split, "dev") if split == "validation" else (split,)
        found = [folder / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]
        file = next((one for one in found if one.is_file()), None)
        if file is None and split != "test":
            raise RequestError(OPTION, f"{folder} (no {split})", f"a folder with {split}.jsonl or .parquet")
        if file is not None:
            splits[split] = _articles(read_table(file, COLUMNS)[0])
    return splits


def _from_hub() -> dict[str, list[Article]]:
    import datasets

    try:
        found = datasets.load_dataset(HUB_NAME)
    except Exception as error:  # no network, no such dataset, a broken cache: many types, one meaning
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise RequestError(
            OPTION, f"null ({HUB_NAME} cannot be had: {reason})", "a file of summaries, or a connection"
        ) from error
    return {
        split: _articles(
            [
                Row(f"{HUB_NAME} {split}, row {number}", dict(row))
                for number, row in enumerate(found[split], start=1)
            ]
        )
        for split in ("train", "validation", "test")
    }


def _articles(rows: Sequence[Row]) -> list[Article]:
    articles = []
    for row in rows:
        texts = [row.get(names) for names in COLUMNS[:2]]
        for (name,), text in zip(COLUMNS, texts, strict=False):
            if not isinstance(text, str) or not text.strip():
                raise RequestError(OPTION, f"{row.place} ({name}: {text!r})", "a text")
        articles.append(Article(texts[0], texts[1], str(row.get(COLUMNS[2])), row.place))
    return articles


@dataclass(frozen=True)
class EncodedArticle:
    """Tokens of a document with the separator after it, and of its summary with the end of text."""

    prompt: list[int]
    summary: list[int]


class XsumDataModule(ExamplesDataModule):
    """Documents and summaries as one sequence: document, separator, summary, end of text.

    Only the summary and the end of text are to be predicted: the labels before them are -100. A document that
    leaves too little room is cut at its end; the summary never is. Batches are ``{"input_ids",
    "attention_mask", "labels"}``, int64 [B, T] padded on the right.

    Args:
        config: the ``data`` group.
        seed: of the order of the training examples.
        tokenizer: of the model.

    Raises:
        RequestError: see :func:`load_xsum`; or a summary that does not fit the sequence by itself.
    """

    def __init__(self, config: XsumConfig, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encoder = text_encoder(tokenizer)
        self.separator: list[int] = self._encoder.encode(config.separator).ids
        self.articles: dict[str, list[Article]] = {}
        super().__init__(config, seed, tokenizer)

    def encode(self) -> dict[str, list[EncodedArticle]]:
        """Read the articles and tokenize every split."""
        self.articles = load_xsum(self.config)
        return {name: self._encode(name, articles) for name, articles in self.articles.items()}

    def _encode(self, split: str, articles: Sequence[Article]) -> list[EncodedArticle]:
        documents = self._encoder.encode_batch([article.document for article in articles])
        # A space before the first word, as everywhere inside a text.
        summaries = self._encoder.encode_batch([" " + article.summary.strip() for article in articles])
        encoded, truncated = [], 0
        for article, document, summary in zip(articles, documents, summaries, strict=True):
            target = [*summary.ids, self.tokenizer.eos_token_id]
            room = self.config.sequence_length - len(self.separator) - len(target)
            if room < 1:
                raise RequestError(
                    "data.sequence_length",
                    f"{self.config.sequence_length} ({article.place} has a summary of {len(summary.ids)} tokens)",
                    "room for the whole summary, the separator and some of the document",
                )
            truncated += len(document.ids) > room
            encoded.append(EncodedArticle([*document.ids[:room], *self.separator], target))
        log.info(
            "xsum %s: %d rows, %d documents truncated to fit %d tokens",
            *(split, len(articles), truncated, self.config.sequence_length),
        )
        return encoded

    def prompts(self, split: str) -> list[list[int]]:
        """Documents with the separator after them, cut so that ``max_summary_tokens`` fit behind.

        The summary is not looked at, as it would not be known.
        """
        room = self.config.sequence_length - len(self.separator) - self.config.max_summary_tokens
        documents = self._encoder.encode_batch([article.document for article in self.articles[split]])
        return [[*document.ids[:room], *self.separator] for document in documents]

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's validation batches, in order."""
        return self.in_order("validation")

    def collate(self, rows: Sequence[EncodedArticle]) -> Batch:
        """A batch of examples; see the class."""
        batch = pad([[*row.prompt, *row.summary] for row in rows], self.tokenizer.eos_token_id)
        labels = pad([[-100] * len(row.prompt) + row.summary for row in rows], -100)["input_ids"]
        return {**batch, "labels": labels}

    def content(self, example: EncodedArticle) -> Iterable[float]:
        """Its tokens, and where the summary begins."""
        return (len(example.prompt), *example.prompt, *example.summary)
