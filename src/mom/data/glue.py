"""GLUE (Wang et al. 2019, arXiv 1804.07461): nine tasks of labeled sentences or pairs of sentences.

A task is read from a local folder of GLUE's own TSV files, from ``.jsonl`` or ``.parquet`` files with the Hub's
columns, or from the Hub.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from mom.data.examples import Batch, ExamplesDataModule, pad
from mom.data.rows import Row, find_split, read_hub, read_rows, read_tsv
from mom.data.tokenizer import TextEncoder
from mom.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import GlueConfig

log = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"
_SUFFIXES = (".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE.

    Args:
        name: the task's name on the Hub and in ``data.name``.
        folder: its folder in GLUE's own download, and the name of its file in a submission.
        texts: the text columns, each with its possible names.
        label: possible names of the label column.
        labels: the classes in order; empty if the label is a score.
        metrics: the official metrics.
        columns: the columns of GLUE's own training file, for a file without a header.
        test_columns: the columns of its test file; if empty, ``columns`` without the label.
        names_in_submission: whether submissions contain class names instead of class numbers.
        validations: suffixes of the validation files.
    """

    name: str
    folder: str
    texts: tuple[tuple[str, ...], ...]
    label: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    test_columns: tuple[str, ...] = ()
    names_in_submission: bool = False
    validations: tuple[str, ...] = ("",)

    @property
    def num_labels(self) -> int:
        """Number of outputs of a classifier: one for each class, or one for a score."""
        return max(1, len(self.labels))

    def file_columns(self, split: str) -> tuple[str, ...]:
        """Return the columns of a file without a header."""
        if not split.startswith("test"):
            return self.columns
        return self.test_columns or tuple(name for name in self.columns if name not in self.label)


_PAIR = (("sentence1",), ("sentence2",))
_ENTAILMENT = ("entailment", "not_entailment")

TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "cola", "CoLA", (("sentence",),), ("label",), ("unacceptable", "acceptable"), ("matthews",),
            ("source", "label", "mark", "sentence"), ("index", "sentence"),
        ),
        GlueTask(
            "sst2", "SST-2", (("sentence",),), ("label",), ("negative", "positive"), ("accuracy",),
            ("sentence", "label"), ("index", "sentence"),
        ),
        GlueTask(
            "mrpc", "MRPC", (("sentence1", "#1 String"), ("sentence2", "#2 String")), ("label", "Quality"),
            ("not_equivalent", "equivalent"), ("f1", "accuracy"),
            ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        ),
        GlueTask(
            "stsb", "STS-B", _PAIR, ("label", "score"), (), ("pearson", "spearman"),
            ("index", "genre", "filename", "year", "old_index", "source1", "source2",
             "sentence1", "sentence2", "score"),
        ),
        GlueTask(
            "qqp", "QQP", (("question1",), ("question2",)), ("label", "is_duplicate"),
            ("not_duplicate", "duplicate"), ("f1", "accuracy"),
            ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            ("id", "question1", "question2"),
        ),
        GlueTask(
            "mnli", "MNLI", (("premise", "sentence1"), ("hypothesis", "sentence2")), ("label", "gold_label"),
            ("entailment", "neutral", "contradiction"), ("accuracy",),
            ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
             "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
            ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
             "sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
            names_in_submission=True, validations=("_matched", "_mismatched"),
        ),
        GlueTask(
            "qnli", "QNLI", (("question",), ("sentence",)), ("label",), _ENTAILMENT, ("accuracy",),
            ("index", "question", "sentence", "label"), names_in_submission=True,
        ),
        GlueTask(
            "rte", "RTE", _PAIR, ("label",), _ENTAILMENT, ("accuracy",),
            ("index", "sentence1", "sentence2", "label"), names_in_submission=True,
        ),
        GlueTask(
            "wnli", "WNLI", _PAIR, ("label",), ("not_entailment", "entailment"), ("accuracy",),
            ("index", "sentence1", "sentence2", "label"),
        ),
    )
}  # fmt: skip
"""The nine tasks by their names on the Hub."""


@dataclass(frozen=True)
class GlueExample:
    """One or two texts and their label: a class number or a score, ``None`` in test sets."""

    texts: tuple[str, ...]
    label: int | float | None


def load_glue(config: GlueConfig) -> dict[str, list[GlueExample]]:
    """Read every split: ``train``, ``validation``, ``test`` (for MNLI, the last two ``_matched`` and ``_mismatched``).

    Test splits that a local folder lacks are skipped; the others are required.

    Raises:
        UsageError: a file, column or label is missing, a row has a wrong number of fields, or a split is empty.
    """
    task = TASKS[config.name]
    tests = [f"test{suffix}" for suffix in task.validations]
    required = ["train", *(f"validation{suffix}" for suffix in task.validations)]
    if config.path is None:
        tables: Mapping[str, Iterable[Row]] = read_hub(HUB_NAME, [*required, *tests], task.name)
    else:
        tables = _read_folder(config, task, required, tests)
    splits = {
        split: [_example(task, row, is_labeled=split not in tests) for row in rows]
        for split, rows in tables.items()
    }
    for split, examples in splits.items():
        if not examples:
            raise UsageError(f"cannot read data.path: {config.path or HUB_NAME} has no rows for {split}")
    return splits


def _read_folder(
    config: GlueConfig, task: GlueTask, required: Sequence[str], tests: Sequence[str]
) -> dict[str, Iterable[Row]]:
    assert config.path is not None
    folder = _task_folder(Path(config.path).expanduser(), task)
    tables: dict[str, Iterable[Row]] = {}
    for split in (*required, *tests):
        files = find_split(folder, (split, split.replace("validation", "dev")), _SUFFIXES)
        if not files and split in required:
            raise UsageError(
                f"data.path must be a folder with {split.replace('validation', 'dev')}.tsv, {split}.jsonl or "
                f"{split}.parquet, got {folder}"
            )
        if not files:
            log.info("%s: no file for %s, so no predictions for it", task.name, split)
            continue
        wanted = [*task.texts, *([] if split in tests else [task.label])]
        if files[0].suffix == ".tsv":
            tables[split] = read_tsv(files[0], wanted, task.file_columns(split), config.skip_broken_rows)
        else:
            tables[split] = itertools.chain.from_iterable([read_rows(file, wanted) for file in files])
    return tables


def _task_folder(path: Path, task: GlueTask) -> Path:
    """Return a task's subfolder of GLUE's folder, or the folder itself if it has no such subfolder."""
    if not path.is_dir():
        raise UsageError(
            f"data.path must be a folder of GLUE, or null for the Hub, got {path}, which does not exist"
        )
    folders = {folder.name.lower(): folder for folder in path.iterdir() if folder.is_dir()}
    return folders.get(task.folder.lower()) or folders.get(task.name) or path


def _example(task: GlueTask, row: Row, is_labeled: bool) -> GlueExample:
    return GlueExample(
        tuple(row.text(names) for names in task.texts), _label(task, row) if is_labeled else None
    )


def _label(task: GlueTask, row: Row) -> int | float:
    value: Any = row.get(task.label)
    if not task.labels:
        try:
            score = float(value)
        except (TypeError, ValueError, OverflowError):
            score = float("nan")
        if not 0 <= score <= 5:
            raise UsageError(
                f"cannot read data.path: the score must be between 0 and 5, got {value!r} in {row.place}"
            )
        return score
    if isinstance(value, str) and value in task.labels:
        return task.labels.index(value)
    try:
        number = -1.0 if isinstance(value, bool) else float(value)  # pandas writes 1.0 for 1
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if number in range(len(task.labels)):
        return int(number)
    allowed = ", ".join(f"{number} or {name}" for number, name in enumerate(task.labels))
    raise UsageError(
        f"cannot read data.path: the label of {task.name} must be {allowed}, got {value!r} in {row.place}"
    )


Encoded = tuple[list[int], int | float | None]


class GlueDataModule(ExamplesDataModule):
    """A task of GLUE, tokenized.

    Each sentence of an example is followed by the end-of-text token; the classifier reads the last of these. Batches
    are ``{"input_ids", "attention_mask", "labels"}``, int64 (B, T) padded on the right, and int64 or float labels (B,);
    batches of test sets have no labels.

    Args:
        config: the ``data`` group.
        seed: seed of the order of the training examples.
        tokenizer: the model's tokenizer.
        task: the task; ``None``: that of GLUE in ``data.name``.

    Raises:
        UsageError: see :func:`load_glue`.
    """

    def __init__(
        self, config: Any, seed: int, tokenizer: PreTrainedTokenizerFast, task: GlueTask | None = None
    ) -> None:
        self.task = task or TASKS[config.name]
        super().__init__(config, seed, tokenizer)
        self.validations = [name for name in self.splits if name.startswith("validation")]
        self.tests = [name for name in self.splits if name.startswith("test")]

    def encode(self) -> dict[str, list[Encoded]]:
        """Read the task's files and tokenize every split."""
        return {name: self._encode(name, rows) for name, rows in self.read().items()}

    def read(self) -> dict[str, list[GlueExample]]:
        """Read every split."""
        return load_glue(self.config)

    def _encode(self, split: str, examples: Sequence[GlueExample]) -> list[Encoded]:
        encoder = TextEncoder(self.tokenizer)
        parts = [
            encoder.encode([example.texts[i] for example in examples]) for i in range(len(examples[0].texts))
        ]
        end = self.tokenizer.eos_token_id
        room = self.config.sequence_length - len(parts)
        encoded, truncated = [], 0
        for example, *ids in zip(examples, *parts, strict=True):
            kept = truncate(ids, room)
            truncated += kept != ids
            encoded.append(([token for part in kept for token in (*part, end)], example.label))
        log.info(
            "%s %s: %d rows, %d of them truncated to %d tokens",
            *(self.task.name, split, len(examples), truncated, self.config.sequence_length),
        )
        return encoded

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader of this rank's batches for each validation set."""
        return [self.rank_dataloader(name) for name in self.validations]

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Pad encoded examples into a batch; see the class."""
        batch = pad([ids for ids, _ in rows], self.tokenizer.eos_token_id)
        labels = [label for _, label in rows]
        return batch if labels[0] is None else {**batch, "labels": torch.tensor(labels)}

    def content(self, example: Encoded) -> Iterable[float]:
        """Return an example's tokens and label."""
        ids, label = example
        return ids if label is None else (*ids, label)


def truncate(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cut the ends of the longest parts until all parts together have at most ``room`` tokens."""
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        lengths[lengths.index(max(lengths))] -= 1
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
