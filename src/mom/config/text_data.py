"""Options of text for language modeling, one corpus or a mixture, and those that all kinds of data share."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from mom.config.checks import conform, in_range, known_names
from mom.config.section import Section
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
        for name, default in _OF_DATASETS.items():
            if self.corpus not in ("datasets", "mixture") and getattr(self, name) != default:
                raise UsageError(
                    f"data.{name} cannot be combined with data={self.corpus}, only with data=datasets"
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
            if options.get("corpus") != "datasets":
                own |= _OF_DATASETS
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
_OF_DATASETS = {"subset": None, "split": "train", "streaming": False}
_OPTIONS_OF_A_PART = ("corpus", "path", "text_column", "subset", "split", "streaming", "max_bytes", "weight")
