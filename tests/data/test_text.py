"""The user's files: their documents, and errors for unreadable files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mom.data import text as text_files
from mom.errors import UsageError


def read(path: Path, text_column: str = "text") -> list[tuple[str, str]]:
    return [
        document
        for name, file in text_files.list_text_files(path)
        for document in text_files.read_texts(name, file, text_column)
    ]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def rejected(path: Path, text_column: str = "text") -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(path, text_column)
    assert "\n" not in str(caught.value)
    return caught.value


def test_folder_is_read_recursively_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", b"second")
    write(tmp_path / "a" / "z.md", b"first")
    write(tmp_path / "c.jsonl", b'{"text": "third"}\n')
    write(tmp_path / "left_out.html", b"x")
    write(tmp_path / ".hidden" / "x.txt", b"x")
    write(tmp_path / ".x.txt", b"x")
    assert read(tmp_path) == [("a/z.md#0", "first"), ("b.txt#0", "second"), ("c.jsonl:1", "third")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_byte_order_mark_and_line_ends(tmp_path: Path, name: str) -> None:
    if name == "a.txt":
        path, expected = write(tmp_path / name, "\ufeffone\r\ntwo\rthree\n".encode()), ["one\ntwo\nthree\n"]
    else:
        content = '\ufeff{"text": "one"}\r\n\r\n{"text": "two\\r\\n"}\r\n'
        path, expected = write(tmp_path / name, content.encode()), ["one", "two\r\n"]
    assert [text for _, text in read(path)] == expected


def test_carriage_return_and_characters_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", 3)
    text = "ab\r\nλλλ\r\r\n模块🙂 end\r"
    path = write(tmp_path / "a.txt", text.encode())
    assert read(path) == [("a.txt#0", "ab\nλλλ\n\n模块🙂 end\n")]


@given(
    paragraphs=st.lists(st.text("ab λ\n", max_size=40), max_size=30),
    block=st.integers(1, 50),
)
def test_cutting_a_long_file_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[str], block: int
) -> None:
    text = "\n\n".join(paragraphs)
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_BLOCK_BYTES", block)
        patch.setattr(text_files, "PLAIN_DOCUMENT_CHARACTERS", 64)
        documents = read(path)
    assert "".join(part for _, part in documents) == text
    assert [name for name, _ in documents] == [f"a.txt#{i}" for i in range(len(documents))]
    assert all(len(part) <= 64 for _, part in documents)
    assert all(len(part) >= 32 for _, part in documents[:-1])


def test_long_file_is_cut_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PLAIN_DOCUMENT_CHARACTERS", 20)
    path = write(tmp_path / "a.txt", b"one two three\n\nfour\nfive six\n\nseven eight")
    assert [text for _, text in read(path)] == ["one two three\n\n", "four\nfive six\n\n", "seven eight"]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one", None, "λ"], "id": [1, 2, 3]}), path)
    assert read(path, "body") == [("a.parquet:1", "one"), ("a.parquet:2", ""), ("a.parquet:3", "λ")]
    assert text_files.text_size(path) > 0
    assert "its columns are body, id" in str(rejected(path))
    assert "data.text_column: column id must hold strings, got int" in str(rejected(path, "id"))


def test_torn_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a complete Parquet file" in str(rejected(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", ":2"),
        (b'["text"]', ":2 must be a JSON object, got list"),
        (b'{"body": "x"}', "its columns are body"),
        (b'{"text": 3}', "got int in"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b'{"text": "\xff"}', "byte 24"),
    ],
)
def test_broken_jsonl_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "x"}\n' + line + b'\n{"text": "y"}\n')
    error = str(rejected(path))
    assert error.startswith(("cannot read data.path: ", "cannot read data.text_column: "))
    assert str(path) in error
    assert message in error


def test_null_text_is_an_empty_document(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", b'{"text": null}')) == [("a.jsonl:1", "")]


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_not_utf8_error_names_the_byte(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", block)
    assert "byte 6" in str(rejected(write(tmp_path / "a.txt", "λ ok".encode() + b" \xe9t\xe9")))
    assert "byte 2" in str(rejected(write(tmp_path / "b.txt", b"ok\xce")))


def test_binary_file(tmp_path: Path) -> None:
    assert "binary" in str(rejected(write(tmp_path / "a.txt", b"abc\0def")))


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "does not exist" in str(rejected(tmp_path / "missing"))
    (tmp_path / "tables").mkdir()
    assert "no text file (1 .csv)" in str(rejected(write(tmp_path / "tables" / "a.csv", b"x\n1\n").parent))
    assert ".txt .md .jsonl .csv .parquet (also .gz" in str(rejected(write(tmp_path / "a.html", b"x")))
    (tmp_path / "a.html").unlink()
    assert "no text file" in str(rejected(tmp_path))


def test_what_is_skipped_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.html", "c.html", "d.tar.gz", "e", ".f.txt", ".git/g.txt", "h.parquet.gz"):
        write(tmp_path / name, b"x")
    (tmp_path / "i.txt").symlink_to(tmp_path / "missing")
    assert read(tmp_path) == [("a.txt#0", "x")]
    (message,) = caplog.messages
    assert message.startswith(f"data.path={tmp_path}: skipped files that are not read as text: 2 .html, ")
    for part in ("1 .tar.gz", "1 no suffix", "1 hidden", "1 hidden folder", "1 .parquet.gz", "1 not a file"):
        assert part in message
    (tmp_path / "a.txt").unlink()
    assert "which has no text file (2 .html, " in str(rejected(tmp_path))


def test_linked_folders_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "elsewhere" / "x.txt", b"far")
    write(tmp_path / "data" / "z" / "y.txt", b"near")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "z")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    assert read(tmp_path / "data") == [("link/x.txt#0", "far"), ("z/y.txt#0", "near")]
    assert "2 folder that another link leads to" in caplog.text


def test_compressed_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt.gz", gzip.compress("one λ\r\n".encode()))
    write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    assert read(tmp_path) == [("a.txt.gz#0", "one λ\n"), ("b.jsonl.gz:1", "two")]
    assert text_files.text_size(tmp_path / "a.txt.gz") > 0
    write(tmp_path / "a.txt.gz", b"not gzip")
    assert "a.txt.gz is not a complete gzip file" in str(rejected(tmp_path))


def test_vanished_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot read data.path: .*a.txt: No such file"):
        list(text_files.read_texts("a.txt", tmp_path / "a.txt", "text"))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path = write(tmp_path_factory.mktemp("jsonl") / "a.jsonl", content.encode())
    assert [text for _, text in read(path)] == texts
