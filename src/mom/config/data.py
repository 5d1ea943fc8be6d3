"""Options of the ``data`` group: one section for each kind of data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from hydra.core.config_store import ConfigStore

from mom.config.checks import conform, in_range, known_names
from mom.config.section import Section, section_by_name
from mom.errors import UsageError, unknown_choice


@dataclass(frozen=True)
class DataSection(Section):
    """Source of the examples, and how they are batched. Each kind of data has its own section.

    Args:
        kind: kind of data.
        batch_size: examples per batch and process.
        num_workers: processes that load batches; 0 loads them in the training process.
    """

    group: ClassVar[str] = "data"

    kind: str
    batch_size: int = 8
    num_workers: int = 0

    @property
    def tokenizer(self) -> str | None:
        """Hub id, local directory, or local file of the tokenizer; None if none is given or none is needed."""
        return None

    @property
    def sequence_length(self) -> int:
        """Maximum tokens per example."""
        raise NotImplementedError

    def _check(self) -> None:
        self._range("batch_size", ge=1)
        self._range("num_workers", ge=0)


@dataclass(frozen=True)
class TextSection(DataSection):
    """Text, which a tokenizer turns into tokens.

    Args:
        path: file or directory with your own data.
        tokenizer: Hub id, local directory, or local file.
        sequence_length: maximum tokens per example.
    """

    path: str | None = None
    tokenizer: str | None = None
    sequence_length: int = 128

    def _check(self) -> None:
        super()._check()
        self._range("sequence_length", ge=2)


# The tokenizers library allocates memory for all tokens before it trains, and ends the process if it gets none.
_LARGEST_TRAINED_VOCABULARY = 1 << 21


@dataclass(frozen=True)
class DataConfig(TextSection):
    """Text for language modeling, and how it becomes tokens and windows.

    Args:
        corpus: source of the text: the running Python's standard library, the installed packages, your own files
            at ``path``, a dataset for the ``datasets`` library, existing token files, or a mixture of these.
        path: for ``corpus=text`` a file or directory of text; for ``datasets`` a Hub id, or a local directory or
            file that the library reads or has saved with ``save_to_disk``; for ``token_files`` a directory with
            ``train.bin`` and ``val.bin``; null for the others.
        text_column: column with the text in a dataset, or in a ``.jsonl``, ``.csv``, or ``.parquet`` file.
        subset: configuration of a dataset, for ``datasets``.
        split: split of a dataset, for ``datasets``; validation documents are held out from it.
        streaming: read a dataset as it downloads, without storing it.
        tokenizer: Hub id, local directory, or local file; None trains a byte-level BPE on the corpus.
        tokenizer_vocab_size: vocabulary size of the trained tokenizer: the 256 bytes, the end-of-text token, and
            merges.
        sequence_length: tokens per window.
        document_mask: let tokens attend to their own document only, and count positions from its start.
        validation_fraction: fraction of documents held out for validation.
        max_bytes: stop after this many UTF-8 bytes of text; None reads everything.
        mixture: corpora by name, for ``mixture``, each with its ``corpus``, ``path`` and other options of text, and its
            ``weight``, the share of the training windows; with weight 0 it is only validated.
        cache_dir: directory for token files; None is ``$MOM_CACHE`` or ``~/.cache/mom``.
        num_processes: threads that tokenize; None is one per CPU.
    """

    kind: Literal["language_modeling"] = "language_modeling"
    corpus: Literal["python_stdlib", "python_packages", "text", "datasets", "token_files", "mixture"] = (
        "python_stdlib"
    )
    text_column: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    tokenizer_vocab_size: int = 4096
    document_mask: bool = False
    validation_fraction: float = 0.01
    max_bytes: int | None = None
    mixture: dict[str, Any] | None = None
    cache_dir: str | None = None
    num_processes: int | None = None

    def _check(self) -> None:
        super()._check()
        self._range("tokenizer_vocab_size", ge=257, le=_LARGEST_TRAINED_VOCABULARY)
        self._range("max_bytes num_processes", ge=1)
        self._range("validation_fraction", gt=0, lt=1)
        required = {
            "text": "a file or directory of text",
            "datasets": "a Hub id, or a file or directory that the datasets library reads",
            "token_files": "a directory with train.bin and val.bin",
        }
        if self.corpus in required and not self.path:
            raise UsageError(f"data={self.corpus} requires data.path: {required[self.corpus]}")
        if self.corpus not in required and self.path is not None:
            raise UsageError(
                f"data.path cannot be combined with data={self.corpus}; use data=text to read {self.path}"
            )
        if self.corpus == "token_files" and self.tokenizer is None:
            raise UsageError(
                "data=token_files requires data.tokenizer: the tokenizer of the token files, such as gpt2"
            )
        for name in ("text_column", "split"):
            if not getattr(self, name):
                raise UsageError(f"data.{name} must be the name of a {name.removeprefix('text_')}, got ''")
        if (self.corpus == "mixture") != bool(self.mixture):
            raise UsageError(
                "data=mixture requires data.mixture: corpora by name"
                if self.corpus == "mixture"
                else f"data.mixture cannot be combined with data={self.corpus}; use data=mixture"
            )
        if self.mixture and not any(part.weight for part in self.parts().values()):
            raise UsageError("data.mixture must have a corpus with a weight above 0")

    def parts(self) -> dict[str, MixturePart]:
        """Return the corpora of a mixture by name, with the other options of this section.

        Raises:
            UsageError: a name or an option is invalid.
        """
        found = {}
        for name, given in (self.mixture or {}).items():
            option = f"data.mixture.{name}"
            if not re.fullmatch(r"[A-Za-z]\w*", str(name)) or name in _GROUPS_OF_METRICS:
                raise UsageError(
                    f"a name in data.mixture must be of letters, digits and _, and none of "
                    f"{', '.join(_GROUPS_OF_METRICS)}, got {name}"
                )
            options = dict(conform(option, given, dict))
            weight = conform(f"{option}.weight", options.pop("weight", 1.0), float)
            in_range(f"{option}.weight", weight, ge=0)
            known_names(option, options, _OPTIONS_OF_A_PART)
            own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
            own |= {"corpus": "python_stdlib", "path": None, "mixture": None}
            try:
                found[str(name)] = MixturePart(DataConfig(**(own | options)), weight)
            except UsageError as error:
                raise UsageError(f"{option}: {error}") from error
        return found

    def part(self, name: str | None) -> tuple[str, DataConfig]:
        """Return the name and the options of a corpus of the mixture, for ``None`` the first.

        If this is no mixture, it is ``""`` and this section.

        Raises:
            UsageError: there is no corpus of this name.
        """
        parts = self.parts()
        if name is None:
            name = next(iter(parts), "")
        elif not parts:
            raise UsageError(f"task.corpus requires data=mixture, got data={self.corpus}")
        elif name not in parts:
            raise unknown_choice("task.corpus", name, list(parts))
        return name, parts[name].config if parts else self


class MixturePart(NamedTuple):
    """A corpus of a mixture, and its weight."""

    config: DataConfig
    weight: float


# Metrics of a corpus are val/<name>/loss, beside these groups.
_GROUPS_OF_METRICS = ("depth", "routing", "compute")
_OPTIONS_OF_A_PART = ("corpus", "path", "text_column", "subset", "split", "streaming", "max_bytes", "weight")


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


@dataclass(frozen=True, kw_only=True)
class ControlSection(DataSection):
    """A control: examples that are generated from a seed, with a known structure.

    Each control is a subclass in :mod:`mom.data.controls`, or in a plugin, that adds its own options.

    Args:
        name: the control.
        seed: seed of its tables and splits, which does not depend on the run's seed.
    """

    kind: Literal["control"] = "control"
    name: str = ""
    seed: int = 0
    batch_size: int = 256

    def _check(self) -> None:
        super()._check()
        self._range("seed", ge=0, le=2**32 - 1)


DATA: Mapping[str, type[DataSection]] = {
    section.kind: section
    for section in (DataConfig, GlueConfig, ClassificationConfig, XsumConfig, ControlSection)
}
"""Sections by kind of data."""

CONTROLS: dict[str, type[ControlSection]] = {}
"""Sections of the controls by name; :func:`mom.data.controls.register_control` adds to them."""


def data_section(given: Mapping[str, Any]) -> DataSection:
    """Create the section for the kind of data in ``given``, by default text for language modeling.

    Raises:
        UsageError: for an unknown kind or control, or an invalid option.
    """
    if given.get("kind") != ControlSection.kind:
        return section_by_name(DATA, given, "kind", DataConfig.kind)
    name = given.get("name")
    if name not in CONTROLS:
        raise unknown_choice("data.name", name, list(CONTROLS))
    return CONTROLS[name].from_mapping(given)


def store_controls(config_dir: Path) -> None:
    """Make each control without a file in ``config_dir``, such as one of a plugin, a choice ``data=control/<name>``."""
    for name, control in CONTROLS.items():
        if not (config_dir / "data" / "control" / f"{name}.yaml").exists():
            node = dataclasses.asdict(control())
            ConfigStore.instance().store(group="data/control", name=name, node=node, package="data")
