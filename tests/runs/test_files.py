"""Files and folders are replaced completely or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mom.runs import files
from mom.runs.files import (
    atomic_file,
    atomic_folder,
    csv_value,
    format_csv,
    is_disk_full,
    parse_json,
    read_json,
    write_json_atomic,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EIO, "x"), False),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("x"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, is_full: bool, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        with (atomic_folder if path.is_dir() else atomic_file)(path) as building:
            (building / "a" if building.is_dir() else building).write_text("1234567")
            try:
                raise error
            except Exception as first:
                raise RuntimeError("archive") from first

    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises((OSError, RuntimeError)) as raised:
            write(path)
        assert is_disk_full(raised.value) is is_full
        expected = rf"No space left on device: .*{path.name} needs more than 7 bytes, [\d,]+ are free"
        assert bool(re.search(expected, str(raised.value))) is is_full
    assert names(tmp_path) == {"folder"}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json_atomic(tmp_path / "x.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json_atomic(tmp_path / "x.json", {"a": 2})

    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert names(tmp_path) == {"x.json"}


def test_unserializable_data_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "x.json", {"a": object()})

    assert not names(tmp_path)


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_json_atomic(tmp_path / "x.json", {})

    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"x.bin"}


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"x.bin"}


def test_a_folder_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "x"
    for content in ("old", "new"):
        with atomic_folder(folder) as building:
            assert not names(building)
            (building / content).mkdir()
            (building / content / "file").touch()

        assert names(folder) == {content, "file"}
        assert names(tmp_path) == {"parent", "x", content, "file"}


def test_an_error_in_the_block_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()

    def write_half() -> None:
        with atomic_folder(tmp_path / "x") as building:
            (building / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert names(tmp_path) == {"x", "old"}


def test_all_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    sync, replace = files.sync, files.os.replace

    def kept_sync(path: Path) -> None:
        done.append(("sync", "new" if path.name.startswith(".x.") else path.name))
        sync(path)

    def kept_replace(path: Path, name: Path) -> None:
        done.append(("name", name.name))
        replace(path, name)

    monkeypatch.setattr(files, "sync", kept_sync)
    monkeypatch.setattr(files.os, "replace", kept_replace)
    write_json_atomic(tmp_path / "x.json", {})
    assert done == [("sync", "new"), ("name", "x.json"), ("sync", tmp_path.name)]

    done.clear()
    with atomic_folder(tmp_path / "x") as building:
        (building / "inner").mkdir()
        (building / "inner" / "file").touch()
    assert sorted(done[:2]) == [("sync", "file"), ("sync", "inner")]
    assert done[2:] == [("sync", "new"), ("name", "x"), ("sync", tmp_path.name)]


def test_what_a_killed_process_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".x.tmp").mkdir()
    (tmp_path / ".x.tmp" / "half").touch()
    with atomic_folder(tmp_path / "x") as building:
        (building / "new").touch()

    assert names(tmp_path) == {"x", "new"}


def test_a_disk_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "x") as building:
        (building / "new").touch()

    assert names(tmp_path) == {"x"}


@given(st.lists(st.fixed_dictionaries({"a": st.text(st.characters(exclude_categories=["Cs"]))})))
@example([{"a": text} for text in ("=1+1", "'=1", "-0.5", "'-0.5", "@x", "\t", "''", "\r", "+x\ry")])
def test_cells_are_no_formulas_and_come_back(rows: list[dict[str, Any]]) -> None:
    text = format_csv(["a", "=b"], [{**row, "=b": -0.5} for row in rows])
    header, *cells = csv.reader(io.StringIO(text, newline=""))
    assert header == ["a", "'=b"]
    assert [csv_value(cell[0]) for cell in cells] == [row["a"] for row in rows]
    for first, number in cells:
        assert number == "-0.5"
        if first.startswith(("=", "+", "-", "@", "\t", "\r")):
            float(first)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value at line 1, column 1"),
        (b"{", "Expecting property name enclosed in double quotes at line 1, column 2"),
        (b'"\xff', "not UTF-8 at byte 1"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"1" * 10_000, "a number has too many digits"),
    ],
    ids=["empty", "open", "bytes", "nested", "digits"],
)
def test_json_that_cannot_be_read(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_json(content)
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == {}


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_json_or_a_value_error(content: bytes) -> None:
    try:
        parse_json(content)
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error)  # noqa: PT017 (either is right)
