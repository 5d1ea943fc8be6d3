"""Rows of files and of the Hub: places, strings, and errors."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mom.data.rows import Row, read_hub, read_rows
from mom.errors import UsageError


def test_rows_of_the_hub_name_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    split = datasets.Dataset.from_dict({"text": ["a", "b"]})
    found = datasets.DatasetDict(train=split, test=split)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    rows = read_hub("owner/name", ["train", "test"], "subset")

    assert [row.place for row in rows["train"]] == [f"owner/name subset train, row {n}" for n in (1, 2)]
    assert [row.number for row in rows["test"]] == [1, 2]


def test_only_wanted_columns_of_parquet_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"one": [1, 2], "two": [3, 4], "three": [5, 6]}), path)

    assert [row.values for row in read_rows(path, [["three", "other"], ["one"]])] == [
        {"one": 1, "three": 5},
        {"one": 2, "three": 6},
    ]


def test_parquet_strings_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    strings = pa.array([b"ok", b"\xff"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": strings}), path)
    with pytest.raises(UsageError, match=r"^cannot read data.path: .*a.parquet, row 2 is not UTF-8"):
        list(read_rows(path, [["text"]]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "column text must hold strings, got null in here"),
        (3, "column text must hold strings, got int in here"),
        ("\ud800", "column text has half a surrogate pair in here"),
    ],
)
def test_values_that_are_not_text_are_rejected(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"^cannot read data.path: {message}"):
        Row("here", 1, {"text": value}).text(["text", "other"])
