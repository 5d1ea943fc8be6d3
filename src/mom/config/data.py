"""The options of each kind of data: a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mom.config.checks import as_written, one_of
from mom.config.section import DataConfig, DataSection
from mom.errors import RequestError

GlueName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


@dataclass(frozen=True)
class GlueConfig(DataSection):
    """One task of GLUE: sentences, or pairs of them, with a label.

    Args:
        name: the task.
        path: folder of GLUE (with ``CoLA/``, ``SST-2/``, …) or of this task, in GLUE's own TSV form or as
            ``.jsonl`` or ``.parquet`` with the Hub's column names; None takes ``nyu-mll/glue`` from the Hub.
        tokenizer: None means that of the weights in ``init``.
        sequence_length: tokens in an example at most; longer ones are truncated, and counted in the log.
        skip_broken_rows: leave out rows with a wrong number of fields (GLUE's own QQP has some) and log how
            many, instead of refusing the file.
    """

    kind: Literal["glue"] = "glue"
    name: GlueName = "mrpc"
    sequence_length: int = 128
    batch_size: int = 32
    skip_broken_rows: bool = False

    def _check(self) -> None:
        super()._check()
        self._range("sequence_length", least=8)


@dataclass(frozen=True)
class XsumConfig(DataSection):
    """Documents to be summarised, and how summaries are generated when they are measured.

    Args:
        path: a ``.jsonl`` or ``.parquet`` file of ``document``, ``summary``, ``id``, or a folder with ``train``,
            ``validation`` and perhaps ``test`` as such; None takes ``EdinburghNLP/xsum`` from the Hub.
        tokenizer: None means that of the weights in ``init``.
        sequence_length: tokens of document, separator, summary and end; documents are cut to fit.
        separator: text between document and summary.
        validation_fraction: share of the documents of a single file that is kept for validation.
        max_summary_tokens: generated at most.
        min_summary_tokens: generated at least.
        num_beams: beams of the search; 1 takes the likeliest token each time.
        length_penalty: above 0 a beam search favours longer summaries, below 0 shorter ones.
        no_repeat_ngram_size: no sequence of so many tokens is generated twice; 0 allows all.
        limit_summaries: generate at most so many summaries of a split; None generates all.
    """

    kind: Literal["xsum"] = "xsum"
    sequence_length: int = 512
    separator: str = "\nTL;DR:"
    validation_fraction: float = 0.1
    max_summary_tokens: int = 64
    min_summary_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    limit_summaries: int | None = None

    def _check(self) -> None:
        super()._check()
        self._range("max_summary_tokens num_beams limit_summaries", least=1)
        self._range("min_summary_tokens no_repeat_ngram_size", least=0)
        self._range("validation_fraction", above=0, below=1)
        if self.min_summary_tokens > self.max_summary_tokens:
            allowed = f"at most data.max_summary_tokens ({self.max_summary_tokens})"
            raise RequestError("data.min_summary_tokens", self.min_summary_tokens, allowed)
        if not self.separator:
            raise RequestError("data.separator", "''", "a text between document and summary")
        # Whatever the tokenizer, a separator has a token for each of its bytes at most.
        room = self.sequence_length - self.max_summary_tokens - len(self.separator.encode("utf-8"))
        if room < 1:
            raise RequestError(
                "data.max_summary_tokens",
                self.max_summary_tokens,
                f"few enough to leave room for a document in data.sequence_length ({self.sequence_length})",
            )

    @property
    def generation(self) -> dict[str, Any]:
        """The options of generation by transformers' names."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_summary_tokens,
            "min_new_tokens": self.min_summary_tokens,
            "num_beams": self.num_beams,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        return options | ({"length_penalty": self.length_penalty} if self.num_beams > 1 else {})


DATA: Mapping[str, type[DataSection]] = {
    section.kind: section for section in (DataConfig, GlueConfig, XsumConfig)
}
"""Every kind of data and its section."""


def data_section(given: Mapping[str, Any]) -> DataSection:
    """Make the section of the kind of data that ``given`` names; none named is text for a language model.

    Raises:
        RequestError: no such kind, or an option that it does not have.
    """
    kind = given.get("kind", DataConfig.kind)
    if kind not in DATA:
        raise RequestError("data.kind", as_written(kind), one_of(kind, list(DATA)))
    return DATA[kind].from_mapping(given)
