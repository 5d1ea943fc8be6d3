"""The options of each kind of data: a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mom.config.section import Section
from mom.errors import RequestError, as_written, one_of


@dataclass(frozen=True)
class DataSection(Section):
    """Where examples come from and how they become batches. Each kind of data has a section of its own.

    Args:
        kind: what the examples are.
        path: file or folder of the user's own data.
        tokenizer: Hub name or local folder or file.
        sequence_length: tokens in an example at most.
        batch_size: examples in a batch, per process.
        num_workers: processes that load batches; 0 loads in the training process.
    """

    group: ClassVar[str] = "data"

    kind: str
    path: str | None = None
    tokenizer: str | None = None
    sequence_length: int = 128
    batch_size: int = 8
    num_workers: int = 0

    def _check(self) -> None:
        self._range("sequence_length", least=2)
        self._range("batch_size", least=1)
        self._range("num_workers", least=0)


@dataclass(frozen=True)
class DataConfig(DataSection):
    """Text for a language model: how it becomes tokens, and how tokens become windows.

    Args:
        corpus: where the text is from: the standard library of the running Python, the installed packages, the
            user's own files at ``path``, a data set of the ``datasets`` library, or token files that exist.
        path: for ``corpus=text`` a file or folder of text; for ``datasets`` a Hub id, or a local folder or file
            that the library reads; for ``token_files`` a folder with ``train.bin`` and ``val.bin``; null for
            the others.
        text_column: which column of a data set, ``.jsonl`` or ``.parquet`` file holds the text.
        subset: which configuration of a data set, for ``datasets``.
        split: which split of a data set, for ``datasets``; validation documents are taken out of it.
        streaming: read a data set as it is downloaded, keeping none of it.
        tokenizer: Hub name or local folder or file; None trains a byte-level BPE on the corpus.
        tokenizer_vocab_size: vocabulary of the trained tokenizer: the 256 bytes, the end of text, and merges.
        sequence_length: tokens in a window.
        validation_fraction: share of documents kept for validation.
        max_bytes: stop after so many UTF-8 bytes of text; None takes all.
        cache_dir: where token files are kept; None means ``$MOM_CACHE`` or ``~/.cache/mom``.
        num_processes: processes that tokenize; None means one for each CPU.
    """

    kind: Literal["language_modeling"] = "language_modeling"
    corpus: Literal["python_stdlib", "python_packages", "text", "datasets", "token_files"] = "python_stdlib"
    text_column: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    tokenizer_vocab_size: int = 4096
    validation_fraction: float = 0.01
    max_bytes: int | None = None
    cache_dir: str | None = None
    num_processes: int | None = None

    def _check(self) -> None:
        super()._check()
        self._range("tokenizer_vocab_size", least=257)
        self._range("max_bytes num_processes", least=1)
        self._range("validation_fraction", above=0, below=1)
        wanted = {
            "text": "a file or folder of text, for data=text",
            "datasets": "a Hub id, or a folder or file that the datasets library reads",
            "token_files": "a folder with train.bin and val.bin, for data=token_files",
        }
        if self.corpus in wanted and not self.path:
            raise RequestError("data.path", "null", wanted[self.corpus])
        if self.corpus not in wanted and self.path is not None:
            raise RequestError(
                "data.path", self.path, f"null for data={self.corpus}; files are read by data=text"
            )
        if self.corpus == "token_files" and self.tokenizer is None:
            raise RequestError("data.tokenizer", "null", "the one that made the token files, such as gpt2")
        for name in ("text_column", "split"):
            if not getattr(self, name):
                raise RequestError(f"data.{name}", "''", f"the name of a {name.removeprefix('text_')}")


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
    """Documents to be summarized, and how summaries are generated when they are measured.

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
        length_penalty: above 0 a beam search favors longer summaries, below 0 shorter ones.
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
