"""Your own labeled texts: classes, splits, and errors with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mom.config import ClassificationConfig
from mom.data.classification import find_task, labeled_data, load_classification
from mom.errors import UsageError
from tests.helpers.checkpoints import small_tokenizer

ROWS = [{"text": f"text {number}", "label": ("bad", "good", "fair")[number % 3]} for number in range(30)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    config = ClassificationConfig(path=str(path), **options)
    task = find_task(config)
    return task, load_classification(config, task)


def test_a_single_file_is_split_by_its_texts_and_gives_the_classes(tmp_path: Path) -> None:
    task, splits = load(write(tmp_path / "mine.jsonl", ROWS), validation_fraction=0.2)
    assert (task.name, task.labels, task.metrics) == ("mine", ("bad", "fair", "good"), ("accuracy",))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 24, "validation": 6}
    labels = {row.texts[0]: task.labels[row.label] for rows in splits.values() for row in rows}
    assert labels == {row["text"]: row["label"] for row in ROWS}
    moved, _ = load(write(tmp_path / "again.jsonl", ROWS[::-1]), validation_fraction=0.2)
    assert moved.labels == task.labels
    again = load(tmp_path / "again.jsonl", validation_fraction=0.2)[1]
    assert {row.texts for row in again["validation"]} == {row.texts for row in splits["validation"]}


def test_a_folder_has_its_splits_and_csv_and_pairs_are_read(tmp_path: Path) -> None:
    header = "first,second,class\n"
    (tmp_path / "train.csv").write_text(f"{header}a,b,1\nc,d,0\n", encoding="utf-8")
    (tmp_path / "dev.csv").write_text(f"{header}e,f,1\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("first,second\ng,h\n", encoding="utf-8")
    options = {"text_columns": ["first", "second"], "label_column": "class", "metric": "f1"}
    task, splits = load(tmp_path, **options)
    assert (task.labels, task.metrics) == (("0", "1"), ("f1", "accuracy"))
    assert [(row.texts, row.label) for row in splits["train"]] == [(("a", "b"), 1), (("c", "d"), 0)]
    assert [(row.texts, row.label) for row in splits["test"]] == [(("g", "h"), None)]
    config = ClassificationConfig(path=str(tmp_path), batch_size=1, **options)  # type: ignore[arg-type]
    data = labeled_data(config, 0, small_tokenizer())
    assert data.validations == ["validation"] and data.tests == ["test"]


def test_labels_may_be_numbers_or_truth_values(tmp_path: Path) -> None:
    for values, labels in (([0, 1.0, 2], ("0", "1", "2")), ([True, False], ("false", "true"))):
        rows = [{"text": f"{number} {value}", "label": value} for number in range(4) for value in values]
        assert load(write(tmp_path / "a.jsonl", rows))[0].labels == labels


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            ROWS,
            {"label_column": "class"},
            r"cannot read data.path: .*:1 has no column class; its columns are text, label",
        ),
        (ROWS[:1], {}, r"data.metric=accuracy requires at least two labels in column label, got bad in "),
        (
            ROWS,
            {"metric": "f1"},
            r"data.metric=f1 requires two labels in column label, got bad, fair, good in ",
        ),
        (
            ROWS,
            {"labels": ["bad", "good"]},
            r"cannot read data.path: the label must be one of bad, good, got fair in .*:3$",
        ),
        (
            [*ROWS, {"text": "x", "label": None}],
            {},
            r"cannot read data.path: the label must be text or a number, got None",
        ),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 0.25}],
            {},
            r"data.metric must be pearson or spearman to predict numbers such as 0.25 in .*, got accuracy; ",
        ),
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": "high"}],
            {"metric": "pearson"},
            r"cannot read data.path: the label must be a finite number, got high in .*:2$",
        ),
        (
            ROWS,
            {"metric": "spearman", "labels": ["bad", "good"]},
            r"data.labels cannot be combined with data.metric=spearman: it scores numbers",
        ),
        (
            [*ROWS, {"text": 3, "label": "bad"}],
            {},
            r"cannot read data.path: column text must hold strings, got int in ",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, rows, options, message) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        load(write(tmp_path / "a.jsonl", rows), **options)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^data=classification requires data.path"):
        ClassificationConfig()
    with pytest.raises(
        UsageError, match=r"^data.path must be a file, or a folder with train.jsonl, train.csv or "
    ):
        load(tmp_path)
