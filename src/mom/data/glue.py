"""GLUE: its nine tasks, their files and their columns, as labeled sentences or pairs of sentences.

Wang et al. 2019, arXiv 1804.07461. Read from a local folder in GLUE's own TSV form (no quoting, perhaps a
byte-order mark, perhaps no header), from ``.jsonl`` or ``.parquet`` with the Hub's columns, or from the Hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from mom.data.examples import Batch, ExamplesDataModule, pad
from mom.data.rows import OPTION, Row, read_table
from mom.data.tokenizer import text_encoder
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.config import GlueConfig

log = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"
_SUFFIXES = (".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class GlueTask:
    """What a task of GLUE is.

    Args:
        name: on the Hub, and ``data.name``.
        folder: in GLUE's own download, and the submission's file name.
        texts: names of the text columns, each with its other names in GLUE's own files.
        label: names of the label's column.
        labels: the classes by their number; empty where the label is a number.
        metrics: the official ones.
        columns: of GLUE's own training file, for one without a header.
        test_columns: of its test file; empty means those above without the label.
        names_in_submission: whether a submission has the classes' names and not their numbers.
        validations: the validation sets, by their suffix in file names.
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
        """Outputs a classifier needs: one for each class, or one number."""
        return max(1, len(self.labels))

    def file_columns(self, split: str) -> tuple[str, ...]:
        """Columns of a file without a header."""
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
    """One row: its text or two texts, and its label, a class's number or a value (None: not told)."""

    texts: tuple[str, ...]
    label: int | float | None


def load_glue(config: GlueConfig) -> dict[str, list[GlueExample]]:
    """Read every split: ``train``, ``validation``, ``test`` (MNLI: the last two ``_matched``, ``_mismatched``).

    Test splits that a local folder lacks are left out; the others have to be there.

    Raises:
        RequestError: ``data.path``, with file and row: no such files, columns or labels, a row with a wrong
            number of fields, an empty split.
    """
    task = TASKS[config.name]
    wanted = ["train", *(f"validation{suffix}" for suffix in task.validations)]
    tests = [f"test{suffix}" for suffix in task.validations]
    splits: dict[str, list[GlueExample]] = {}
    for split, rows in _tables(config, task, wanted, tests).items():
        labeled = not split.startswith("test")
        splits[split] = [_example(task, row, labeled) for row in rows]
        if not splits[split]:
            raise RequestError(OPTION, f"{config.path or HUB_NAME} (no row in {split})", "a split with rows")
    return splits


def _tables(
    config: GlueConfig, task: GlueTask, wanted: Sequence[str], tests: Sequence[str]
) -> dict[str, list[Row]]:
    if config.path is None:
        return _from_hub(task, [*wanted, *tests])
    folder = _folder(Path(config.path).expanduser(), task)
    tables = {}
    for split in (*wanted, *tests):
        file = _file(folder, split)
        if file is None and split in wanted:
            raise RequestError(
                OPTION,
                f"{folder} (no {split})",
                f"a folder with {split.replace('validation', 'dev')}.tsv, or {split} as .jsonl or .parquet",
            )
        if file is None:
            log.info("%s: no file for %s, so no predictions for it", task.name, split)
            continue
        groups = [*task.texts, *([] if split in tests else [task.label])]
        rows, broken = read_table(file, groups, task.file_columns(split), config.skip_broken_rows)
        if broken:
            log.warning("%s: %d rows with a wrong number of fields left out", file, broken)
        tables[split] = rows
    return tables


def _folder(path: Path, task: GlueTask) -> Path:
    if not path.is_dir():
        raise RequestError(OPTION, f"{path} (not found)", "a folder of GLUE, or null for the Hub")
    inside = {one.name.lower(): one for one in path.iterdir() if one.is_dir()}
    return inside.get(task.folder.lower()) or inside.get(task.name) or path


def _file(folder: Path, split: str) -> Path | None:
    """The file of a split: ``dev_matched.tsv``, ``validation.jsonl``, ``train-00000-of-00001.parquet``."""
    for stem in (split, split.replace("validation", "dev")):
        for suffix in _SUFFIXES:
            if (file := folder / f"{stem}{suffix}").is_file():
                return file
        if shard := sorted(folder.glob(f"{stem}-00000-of-00001.parquet")):
            return shard[0]
    return None


def _from_hub(task: GlueTask, splits: Sequence[str]) -> dict[str, list[Row]]:
    import datasets

    try:
        found = datasets.load_dataset(HUB_NAME, task.name)
    except Exception as error:  # no network, no such dataset, a broken cache: many types, one meaning
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise RequestError(
            OPTION,
            f"null ({HUB_NAME} cannot be had: {reason})",
            "a folder with GLUE's files, or a connection",
        ) from error
    return {
        split: [
            Row(f"{HUB_NAME} {task.name} {split}, row {number}", dict(row))
            for number, row in enumerate(found[split], start=1)
        ]
        for split in splits
    }


def _example(task: GlueTask, row: Row, labeled: bool) -> GlueExample:
    texts = []
    for names in task.texts:
        text = row.get(names)
        if not isinstance(text, str):
            raise RequestError(OPTION, f"{row.place} ({names[0]}: {text!r})", "a text")
        texts.append(text)
    return GlueExample(tuple(texts), _label(task, row) if labeled else None)


def _label(task: GlueTask, row: Row) -> int | float:
    given: Any = row.get(task.label)
    if not task.labels:
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = float("nan")
        if not 0 <= value <= 5:
            raise RequestError(OPTION, f"{row.place} (label {given!r})", "a score from 0 to 5")
        return value
    if isinstance(given, str) and given in task.labels:
        return task.labels.index(given)
    if not isinstance(given, bool) and str(given) in map(str, range(len(task.labels))):
        return int(given)
    numbers = ", ".join(f"{number} or {name}" for number, name in enumerate(task.labels))
    raise RequestError(OPTION, f"{row.place} (label {given!r})", f"a label of {task.name}: {numbers}")


Encoded = tuple[list[int], int | float | None]


class GlueDataModule(ExamplesDataModule):
    """One task of GLUE, tokenized.

    An example is its sentence, or its two sentences parted by the end-of-text token, and the end-of-text
    token, at which the classifier reads. Batches are ``{"input_ids", "attention_mask", "labels"}``, int64
    [B, T] padded on the right, labels int64 or float [B]; test batches have no labels.

    Args:
        config: the ``data`` group.
        seed: of the order of the training examples.
        tokenizer: of the model.

    Raises:
        RequestError: see :func:`mom.data.glue.load_glue`.
    """

    def __init__(self, config: GlueConfig, seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        self.task = TASKS[config.name]
        super().__init__(config, seed, tokenizer)
        self.validations = [name for name in self.splits if name.startswith("validation")]
        self.tests = [name for name in self.splits if name.startswith("test")]

    def encode(self) -> dict[str, list[Encoded]]:
        """Read the task's files and tokenize every split."""
        return {name: self._encode(name, rows) for name, rows in load_glue(self.config).items()}

    def _encode(self, split: str, examples: Sequence[GlueExample]) -> list[Encoded]:
        encoder = text_encoder(self.tokenizer)
        parts = [
            [one.ids for one in encoder.encode_batch([example.texts[i] for example in examples])]
            for i in range(len(examples[0].texts))
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
        """This rank's batches of the validation sets, in order."""
        return [self.in_order(name) for name in self.validations]

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """A batch of examples; see the class."""
        batch = pad([ids for ids, _ in rows], self.tokenizer.eos_token_id)
        labels = [label for _, label in rows]
        return batch if labels[0] is None else {**batch, "labels": torch.tensor(labels)}

    def content(self, example: Encoded) -> Iterable[float]:
        """Its tokens and its label."""
        ids, label = example
        return ids if label is None else (*ids, label)


def truncate(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cut the ends of the longest parts until all of them together have at most ``room`` tokens."""
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        lengths[lengths.index(max(lengths))] -= 1
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
