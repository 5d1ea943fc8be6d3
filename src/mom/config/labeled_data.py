"""Options of data with answers: GLUE, XSum, and your own labeled texts or pairs of texts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from mom.config.text_data import TextSection
from mom.errors import UsageError

GlueName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


@dataclass(frozen=True)
class GlueConfig(TextSection):
    """A GLUE task: labeled sentences or pairs of sentences.

    Args:
        name: the task.
        path: directory of GLUE (with ``CoLA/``, ``SST-2/``, …) or of this task, in GLUE's own TSV format or as
            ``.jsonl`` or ``.parquet`` with the Hub's column names; None downloads ``nyu-mll/glue`` from the Hub.
        tokenizer: None is the tokenizer of the weights in ``init``.
        sequence_length: maximum tokens per example; longer examples are truncated, and counted in the log.
        skip_broken_rows: skip rows with a wrong number of fields (GLUE's own QQP has some) and log their number
            instead of rejecting the file.
    """

    kind: Literal["glue"] = "glue"
    name: GlueName = "mrpc"
    sequence_length: int = 128
    batch_size: int = 32
    skip_broken_rows: bool = False

    def _check(self) -> None:
        super()._check()
        self._range("sequence_length", ge=8)


_XSUM_LENGTH = 512


@dataclass(frozen=True)
class ClassificationConfig(TextSection):
    """Your own labeled texts, or pairs of texts.

    Args:
        path: a ``.jsonl``, ``.csv``, or ``.parquet`` file, or a directory with such files named ``train``,
            ``validation``, and optionally ``test``, whose labels are not read.
        text_columns: the columns with the texts, one or several.
        label_column: the column with the label.
        labels: the classes in order; None is the labels of the training rows, sorted.
        metric: the metric that selects the best checkpoint; ``f1`` (of the second class) and ``matthews`` need two
            classes, and ``pearson`` and ``spearman`` (correlations) are for labels that are numbers to predict.
        tokenizer: None is the tokenizer of the weights in ``init``.
        sequence_length: maximum tokens per example; longer examples are truncated, and counted in the log.
        validation_fraction: fraction of the rows of a single file held out for validation.
    """

    kind: Literal["classification"] = "classification"
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    label_column: str = "label"
    labels: list[str] | None = None
    metric: Literal["accuracy", "f1", "matthews", "pearson", "spearman"] = "accuracy"
    sequence_length: int = 128
    batch_size: int = 32
    validation_fraction: float = 0.1

    def _check(self) -> None:
        super()._check()
        self._range("sequence_length", ge=8)
        self._range("validation_fraction", gt=0, lt=1)
        if not self.path:
            raise UsageError("data=classification requires data.path: a file or directory of labeled texts")
        if not self.text_columns:
            raise UsageError("data.text_columns must be a list of at least one column, got []")
        if self.labels is not None and len(set(self.labels)) != max(2, len(self.labels)):
            raise UsageError("data.labels must be null or a list of at least two distinct labels")
        if self.labels is not None and self.is_regression:
            raise UsageError(
                f"data.labels cannot be combined with data.metric={self.metric}: it scores numbers"
            )

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers to predict, not classes."""
        return self.metric in ("pearson", "spearman")


@dataclass(frozen=True)
class XsumConfig(TextSection):
    """Documents with summaries, and how summaries are generated for evaluation.

    Args:
        path: a ``.jsonl``, ``.csv``, or ``.parquet`` file with ``document``, ``summary``, and ``id``, or a directory
            with such files named ``train``, ``validation``, and optionally ``test``; None downloads
            ``EdinburghNLP/xsum`` from the Hub.
        document_column: column with the documents, or any other input.
        summary_column: column with the summaries, or any other output.
        tokenizer: None is the tokenizer of the weights in ``init``.
        sequence_length: tokens of document, separator, summary, and end; documents are truncated to fit. None is 512,
            or the model's positions if it has fewer.
        separator: text between document and summary.
        validation_fraction: fraction of the documents of a single file held out for validation.
        max_summary_tokens: maximum length of a generated summary.
        min_summary_tokens: minimum length of a generated summary.
        num_beams: beams of the search; 1 is greedy decoding.
        length_penalty: beam search prefers longer summaries above 0, shorter ones below 0.
        no_repeat_ngram_size: size of the n-grams that may not repeat; 0 allows all.
        limit_summaries: maximum summaries to generate per split; None generates all.
    """

    kind: Literal["xsum"] = "xsum"
    document_column: str = "document"
    summary_column: str = "summary"
    sequence_length: int | None = None  # type: ignore[assignment]
    separator: str = "\nTL;DR:"
    validation_fraction: float = 0.1
    max_summary_tokens: int = 64
    min_summary_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    limit_summaries: int | None = None

    @property
    def window(self) -> int:
        """``sequence_length``, or its default."""
        return _XSUM_LENGTH if self.sequence_length is None else self.sequence_length

    def fitted(self, max_positions: int) -> XsumConfig:
        """Return the section with the default ``sequence_length`` for a model with this number of positions."""
        if self.sequence_length is not None:
            return self
        return dataclasses.replace(self, sequence_length=min(_XSUM_LENGTH, max_positions))

    def _check(self) -> None:
        super()._check()
        if self.path is None and self.columns != (("document",), ("summary",)):
            raise UsageError(
                "data=text_to_text requires data.path: a file or directory of inputs and outputs"
            )
        self._range("max_summary_tokens num_beams limit_summaries", ge=1)
        self._range("min_summary_tokens no_repeat_ngram_size", ge=0)
        self._range("validation_fraction", gt=0, lt=1)
        if self.min_summary_tokens > self.max_summary_tokens:
            raise UsageError(
                f"data.min_summary_tokens must be at most data.max_summary_tokens ({self.max_summary_tokens}), "
                f"got {self.min_summary_tokens}"
            )
        if not self.separator:
            raise UsageError("data.separator must not be empty: it separates document and summary")
        # No tokenizer splits the separator into more tokens than bytes.
        longest = self.window - 1 - len(self.separator.encode("utf-8"))
        if self.max_summary_tokens > longest:
            raise UsageError(
                f"data.max_summary_tokens must be at most {longest} to leave room for a document in "
                f"data.sequence_length ({self.window}), got {self.max_summary_tokens}"
            )

    @property
    def columns(self) -> tuple[tuple[str], tuple[str]]:
        """The names of the columns with the input and the output."""
        return (self.document_column,), (self.summary_column,)

    @property
    def generation(self) -> dict[str, Any]:
        """Generation options by their names in transformers."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_summary_tokens,
            "min_new_tokens": self.min_summary_tokens,
            "num_beams": self.num_beams,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        return options | ({"length_penalty": self.length_penalty} if self.num_beams > 1 else {})
