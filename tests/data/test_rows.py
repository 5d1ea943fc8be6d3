"""Rows of files and of the Hub: places, strings, and errors."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mom.data import rows
from mom.data.rows import Row, find_split, read_hub, read_rows
from mom.errors import UsageError


def test_rows_of_the_hub_name_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    split = datasets.Dataset.from_dict({"text": ["a", "b"]})
    found = datasets.DatasetDict(train=split, test=split)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    found_rows = read_hub("owner/name", ["train", "test"], "subset")

    assert [row.place for row in found_rows["train"]] == [f"owner/name subset train, row {n}" for n in (1, 2)]
    assert [row.number for row in found_rows["test"]] == [1, 2]


def test_only_wanted_columns_of_parquet_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"one": [1, 2], "two": [3, 4], "three": [5, 6]}), path)

    assert [row.values for row in read_rows(path, [["three", "other"], ["one"]])] == [
        {"one": 1, "three": 5},
        {"one": 2, "three": 6},
    ]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_kind_of_parquet_string_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    strings = pa.array(["one", None, "λ", "one"])
    pq.write_table(
        pa.table(
            {"text": strings.dictionary_encode() if pa.types.is_dictionary(kind) else strings.cast(kind)}
        ),
        path,
    )
    assert [row.values["text"] for row in read_rows(path, [["text"]])] == ["one", None, "λ", "one"]


def test_a_repeated_parquet_string_is_read_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": pa.array(["x" * 2_000_000] * 256).dictionary_encode()}),
        path,
        dictionary_pagesize_limit=1 << 24,
    )
    assert path.stat().st_size < 200_000
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), 0
    for row in read_rows(path, [["text"]]):
        peak = max(peak, pool.bytes_allocated() - before)
        assert len(row.values["text"]) == 2_000_000
    assert peak < 100_000_000


def test_rows_are_read_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [str(number) * 1_000_000 for number in range(10, 80)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        use_dictionary=False,
        compression="none",
        write_batch_size=1,
        data_page_size=1,
    )
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), 0
    for number, row in enumerate(read_rows(path, [["text"]]), start=10):
        peak = max(peak, pool.bytes_allocated() - before)
        assert row.values["text"] == str(number) * 1_000_000
    assert peak < 110_000_000 < path.stat().st_size


def test_a_page_that_expands_without_measure_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 40_000_000] * 2}), path, use_dictionary=False, compression="zstd")
    message = r"^cannot read data.path: row group 1 of .*a.parquet expands from [\d,]+ to 80,000,\d+ bytes"
    with pytest.raises(UsageError, match=message):
        list(read_rows(path, [["text"]]))


def test_a_damaged_page_names_the_file_and_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one two three"] * 50}), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[30:60] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^cannot read data.path: .*a.parquet is damaged after row 0 \("):
        list(read_rows(path, [["text"]]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ' + "1" * 10_000 + "}", "a.jsonl:2 is not JSON (a number has too many digits)"),
        ('{"text": ' + "[" * 100_000 + "}", "a.jsonl:2 is not JSON (it is nested too deeply)"),
        ('{"text": ', "a.jsonl:2 is not JSON (Expecting value at line 2, column 1)"),
    ],
)
def test_json_that_python_refuses_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(UsageError) as caught:
        list(read_rows(path, [["text"]]))
    assert message in str(caught.value)


def test_a_line_without_end_is_rejected_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LARGEST_ROW", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "' + "x" * 100 + '"}\n')
    message = r"^cannot read data.path: the line at byte 14 of .*a.jsonl must have at most 100 bytes$"
    with pytest.raises(UsageError, match=message):
        list(read_rows(path, [["text"]]))


COMPRESS = {
    "gz": ("gzip", gzip.compress),
    "bz2": ("bzip2", bz2.compress),
    "xz": ("xz", lzma.compress),
    "zst": ("Zstandard", lambda content: bytes(pa.Codec("zstd").compress(content, asbytes=True))),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("kind", "content"), [("jsonl", b'{"text": "x"}\n{"text": "y"}\n'), ("csv", b"text\nx\ny\n")]
)
def test_compressed_rows(tmp_path: Path, suffix: str, kind: str, content: bytes) -> None:
    path = tmp_path / f"a.{kind}.{suffix}"
    name, compress = COMPRESS[suffix]
    path.write_bytes(compress(content))
    assert [row.values["text"] for row in read_rows(path, [["text"]])] == ["x", "y"]
    for damaged in (path.read_bytes()[:-9], b"plain", path.read_bytes()[:12] + b"\xff" * 20):
        path.write_bytes(damaged)
        with pytest.raises(
            UsageError, match=rf"^cannot read data.path: .*a.{kind}.{suffix} is not a complete {name} file"
        ):
            list(read_rows(path, [["text"]]))
    with pytest.raises(UsageError, match=r"No such file"):
        list(read_rows(path.with_name(f"none.{suffix}"), [["text"]]))


def test_csv_has_a_header_and_quoted_values_may_hold_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffid,text\n1,"one, two"\n\n2,"three\nfour ""five"""\n3,\n', encoding="utf-8")
    rows_found = list(read_rows(path, [["text"]]))
    assert [row.values["text"] for row in rows_found] == ["one, two", 'three\nfour "five"', ""]
    assert [row.place for row in rows_found] == [f"{path}:{line}" for line in (2, 4, 6)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,text\n1,a\n2\n", "a.csv:3 must have 2 fields, got 1"),
        (b"id,txt\n1,a\n", "a.csv has no column text; its columns are id, txt"),
        (b'id,text\n1,"a\n', "a.csv:2 is not CSV (unexpected end of data)"),
        (b"id,text\n1,\xff\n", "a.csv is not UTF-8 at byte 10"),
    ],
)
def test_damaged_csv_is_one_line_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^cannot read data.path: .*{re.escape(message)}$"):
        list(read_rows(path, [["text"]]))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"train-0000{number}-of-00002.parquet").touch()
    assert [path.name[:11] for path in find_split(tmp_path, ["train"], [".jsonl"])] == [
        "train-00000",
        "train-00001",
    ]
    assert find_split(tmp_path, ["test"], [".jsonl"]) == []
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UsageError, match=r"must have 2 files train-\*.parquet, got 1$"):
        find_split(tmp_path, ["train"], [".jsonl"])


def test_parquet_strings_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    strings = pa.array([b"ok", b"\xff"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": strings}), path)
    with pytest.raises(UsageError, match=r"^cannot read data.path: .*a.parquet, row 2 is not UTF-8"):
        list(read_rows(path, [["text"]]))


def test_a_value_that_is_too_long_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LARGEST_ROW", 10)
    assert Row("here", 1, {"text": "x" * 10}).text(["text"]) == "x" * 10
    with pytest.raises(
        UsageError, match=r"^cannot read data.path: column text in here must have at most 10 bytes$"
    ):
        Row("here", 1, {"text": "x" * 11}).text(["text"])


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
