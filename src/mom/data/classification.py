"""Your own labeled texts: read like a task of GLUE whose classes are those of the training rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mom.config import ClassificationConfig, GlueConfig
from mom.data.examples import held_out
from mom.data.glue import TASKS, GlueDataModule, GlueExample, GlueTask
from mom.data.rows import Row, file_kind, find_split, read_rows
from mom.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SUFFIXES = (".jsonl", ".csv", ".parquet")


class ClassificationDataModule(GlueDataModule):
    """Your own labeled texts, tokenized; see :class:`~mom.data.glue.GlueDataModule`."""

    def read(self) -> dict[str, list[GlueExample]]:
        """Read every split."""
        return load_classification(self.config, self.task)


def labeled_data(
    config: GlueConfig | ClassificationConfig, seed: int, tokenizer: PreTrainedTokenizerFast
) -> GlueDataModule:
    """Read and tokenize a task of GLUE, or your own labeled texts."""
    kind = ClassificationDataModule if isinstance(config, ClassificationConfig) else GlueDataModule
    return kind(config, seed, tokenizer, find_task(config))


def find_task(config: GlueConfig | ClassificationConfig) -> GlueTask:
    """Return the task of a configuration; for your own file, its classes are read from the training rows.

    Raises:
        UsageError: the training rows cannot be read, or do not fit the options.
    """
    return own_task(config) if isinstance(config, ClassificationConfig) else TASKS[config.name]


def own_task(config: ClassificationConfig) -> GlueTask:
    """Return the task of your own file; see :func:`find_task`."""
    texts, label = tuple((name,) for name in config.text_columns), (config.label_column,)
    name = Path(str(config.path)).name.split(".")[0] or "data"
    if config.is_regression:
        second = "spearman" if config.metric == "pearson" else "pearson"
        return GlueTask(name, name, texts, label, (), (config.metric, second), (), names_in_submission=True)
    labels = config.labels or sorted({_own_label(row, label) for row in _own_tables(config)["train"]})
    if config.labels is None and (number := _fraction(labels)) is not None:
        raise UsageError(
            f"data.metric must be pearson or spearman to predict numbers such as {number} in {config.path}, got "
            f"{config.metric}; if they are classes, list them in data.labels"
        )
    if len(labels) < 2 or (len(labels) != 2 and config.metric != "accuracy"):
        needed = "at least two labels" if config.metric == "accuracy" else "two labels"
        raise UsageError(
            f"data.metric={config.metric} requires {needed} in column {config.label_column}, got "
            f"{', '.join(labels)[:200]} in {config.path}"
        )
    metrics = (config.metric,) if config.metric == "accuracy" else (config.metric, "accuracy")
    return GlueTask(name, name, texts, label, tuple(labels), metrics, (), names_in_submission=True)


def _fraction(labels: Sequence[str]) -> str | None:
    """Return a label with a fractional part if all labels are numbers, and None otherwise."""
    try:
        return next((label for label in labels if not float(label).is_integer()), None)
    except ValueError:
        return None


def load_classification(config: ClassificationConfig, task: GlueTask) -> dict[str, list[GlueExample]]:
    """Read every split of your own labeled texts; those of a single file are split by a hash of the texts.

    Raises:
        UsageError: a file, column, or label is missing or invalid, or a split is empty.
    """
    splits = {}
    for split, rows in _own_tables(config).items():
        splits[split] = [_own_example(task, row, is_labeled=split != "test") for row in rows]
    if "validation" not in splits:
        examples = splits["train"]
        is_held_out = held_out(["\0".join(example.texts) for example in examples], config.validation_fraction)
        splits = {
            "train": [example for example, held in zip(examples, is_held_out, strict=True) if not held],
            "validation": [example for example, held in zip(examples, is_held_out, strict=True) if held],
        }
    for split, examples in splits.items():
        if not examples:
            raise UsageError(f"cannot read data.path: {config.path} has no rows for {split}")
    return splits


def _own_tables(config: ClassificationConfig) -> dict[str, Iterable[Row]]:
    """Return the rows of each split of your own file or folder; a single file is all ``train``."""
    path = Path(str(config.path)).expanduser()
    wanted = [(name,) for name in config.text_columns]
    labeled = [*wanted, (config.label_column,)]
    if path.is_file():
        if file_kind(path) not in _SUFFIXES:
            raise UsageError(f"data.path must be a file ending in {' or '.join(_SUFFIXES)}, got {path}")
        return {"train": read_rows(path, labeled)}
    tables: dict[str, Iterable[Row]] = {}
    for split in ("train", "validation", "test"):
        files = find_split(path, (split, split.replace("validation", "dev")), _SUFFIXES)
        if not files and split != "test":
            raise UsageError(
                f"data.path must be a file, or a folder with {split}.jsonl, {split}.csv or {split}.parquet, got {path}"
            )
        columns = wanted if split == "test" else labeled
        if files:
            tables[split] = itertools.chain.from_iterable([read_rows(file, columns) for file in files])
    return tables


def _own_example(task: GlueTask, row: Row, is_labeled: bool) -> GlueExample:
    texts = tuple(row.text(names) for names in task.texts)
    if not is_labeled:
        return GlueExample(texts, None)
    label = _own_label(row, task.label)
    if not task.labels:
        return GlueExample(texts, _own_number(label, row))
    if label not in task.labels:
        raise UsageError(
            f"cannot read data.path: the label must be one of {', '.join(task.labels)[:200]}, got {label} in "
            f"{row.place}"
        )
    return GlueExample(texts, task.labels.index(label))


def _own_number(label: str, row: Row) -> float:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"cannot read data.path: the label must be a finite number, got {label} in {row.place}"
        )
    return number


def _own_label(row: Row, names: Sequence[str]) -> str:
    """Return a label as text; 1.0, as pandas writes 1 beside missing values, is 1."""
    value = row.get(names)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        if isinstance(value, bool):
            return str(value).lower()
        raise UsageError(
            f"cannot read data.path: the label must be text or a number, got {value!r} in {row.place}"
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
