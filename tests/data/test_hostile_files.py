"""Readers of the user's files, fed with damaged, nested, huge, empty, mis-encoded, and hostile ones.

A reader returns what is there, or raises a UsageError of one line that names the file. Nothing else comes out of it.
"""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mom.config import GlueConfig, XsumConfig
from mom.data.glue import load_glue
from mom.data.rows import read_rows, read_tsv
from mom.data.text import list_text_files, read_texts
from mom.data.tokenizer import load_tokenizer
from mom.data.xsum import load_xsum
from mom.errors import UsageError
from mom.tasks.generate import read_prompts
from tests.helpers.checkpoints import small_tokenizer
from tests.helpers.glue_files import write_glue
from tests.helpers.xsum_files import write_xsum

NESTED = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DIGITS = b'{"text": ' + b"9" * 100_000 + b"}"
ROWS = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in ("one", "zwei λ", "\u2028", ""))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.just("text"), inner, max_size=3)
    ),
    max_leaves=6,
)
contents = (
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: text.encode("utf-16"))
    | st.lists(json_values, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    | st.lists(st.text(max_size=10).map(lambda text: {"text": text}), max_size=4).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    )
)
damage = st.tuples(
    st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.sampled_from(["flip", "cut", "twice"])
)


def damaged(content: bytes, how: tuple[float, int, str]) -> bytes:
    """Change a byte, cut the rest off, or repeat it."""
    place, mask, kind = how
    at = int(place * len(content))
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
    return content[:at] if kind == "cut" else content[:at] + content


def outcome(read: Callable[[], Any], *named: str | Path) -> str:
    """Return the error of a reader, which must be one line that names the file; empty without an error."""
    try:
        found = read()
        if isinstance(found, Iterator):
            for _ in found:
                pass
    except UsageError as error:
        message = str(error)
        if "\n" in message or not any(str(name) in message for name in named):
            raise AssertionError(message) from error
        return message
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@settings(deadline=None, max_examples=50)
@given(content=contents)
@example(content=b"")
@example(content=NESTED)
@example(content=DIGITS)
@example(content=b"\xef\xbb\xbf")
@example(content=b'{"text": "\\ud800"}')
@example(content=b'{"text": NaN}')
@example(content=b'{"text": "a", "text": ["b"]}')
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.parquet", "a.txt.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("compress", [False, True])
def test_any_bytes_as_any_text_file(name: str, compress: bool, content: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if compress else content)

    def read() -> Iterator[tuple[str, str]]:
        for found, file in list_text_files(path):
            for document, text in read_texts(found, file, "text"):
                assert document.startswith(name)
                text.encode("utf-8")
                yield document, text

    message = outcome(read, path)
    assert not message or message.startswith("cannot read data.")


def parquet_bytes(**options: Any) -> bytes:
    rows = [{"text": "one two " * 20, "other": 3}, {"text": None, "other": 4}, {"text": "λ" * 9, "other": 5}]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows * 30), stream, **options)
    return stream.getvalue()


WHOLE = {
    "zstd.parquet": parquet_bytes(compression="zstd"),
    "plain.parquet": parquet_bytes(compression="none", use_dictionary=False),
    "a.jsonl": ROWS,
    "a.jsonl.gz": gzip.compress(ROWS, mtime=0),
}


@settings(deadline=None, max_examples=60)
@given(how=damage)
@example(how=(0.640625, 128, "flip"))  # the name of a column is not UTF-8
@pytest.mark.parametrize("name", list(WHOLE))
def test_a_damaged_file_is_read_or_named(name: str, how: tuple[float, int, str], folder: Path) -> None:
    path = folder / name
    path.write_bytes(damaged(WHOLE[name], how))
    outcome(lambda: (row.get(["text"]) for row in read_rows(path, [["text"]])), path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"a": 1}]),
        pa.array([["a", "b"]]),
        pa.array([1.5]),
        pa.array([b"\xff"]),
        pa.array([2**62], pa.timestamp("ns")),
        pa.array([2**31 - 1], pa.date32()),
        pa.array([None], pa.null()),
        pa.array(["a"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_any_parquet_column(column: pa.Array, folder: Path) -> None:
    path = folder / "column.parquet"
    pq.write_table(pa.table({"text": column}), path)
    message = outcome(lambda: read_texts("column.parquet", path, "text"), path)
    assert not message or message.startswith("cannot read data.")


@settings(deadline=None, max_examples=40)
@given(content=contents, how=damage)
def test_any_bytes_as_tsv(content: bytes, how: tuple[float, int, str], folder: Path) -> None:
    path = folder / "a.tsv"
    for written in (content, damaged(b"sentence\tlabel\na b\t1\nc\t0\n", how)):
        path.write_bytes(written)
        for skip_broken in (False, True):
            outcome(
                lambda skip=skip_broken: read_tsv(path, [["sentence"]], ("sentence", "label"), skip), path
            )


@settings(deadline=None, max_examples=40)
@given(how=damage, split=st.sampled_from(["train", "dev", "test"]))
def test_damaged_glue(
    how: tuple[float, int, str], split: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("glue")
    file = write_glue(root, "rte") / f"{split}.tsv"
    file.write_bytes(damaged(file.read_bytes(), how))
    outcome(lambda: load_glue(GlueConfig(name="rte", path=str(root))), root)


@settings(deadline=None, max_examples=40)
@given(how=damage)
def test_damaged_xsum(how: tuple[float, int, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = write_xsum(tmp_path_factory.mktemp("xsum") / "x", train=3, validation=2)
    file = root / "train.jsonl"
    file.write_bytes(damaged(file.read_bytes(), how))
    outcome(lambda: load_xsum(XsumConfig(path=str(root))), root)


@settings(deadline=None, max_examples=40)
@given(content=contents)
@example(content=NESTED)
@example(content=DIGITS)
@example(content=b'{"prompt": "a"}\n[]\n')
@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_any_bytes_as_prompts(name: str, content: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(content)
    outcome(lambda: read_prompts(path), path)


@pytest.fixture(scope="module")
def tokenizer_files(folder: Path) -> dict[str, bytes]:
    small_tokenizer().save_pretrained(str(folder / "tokenizer"))
    return {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()}


@settings(deadline=None, max_examples=40)
@given(how=damage, value=json_values, path=st.lists(st.integers(0, 12), min_size=1, max_size=3))
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(
    name: str,
    how: tuple[float, int, str],
    value: Any,
    path: list[int],
    folder: Path,
    tokenizer_files: dict[str, bytes],
) -> None:
    for file, content in tokenizer_files.items():
        (folder / "tokenizer" / file).write_bytes(content)
    content = json.loads(tokenizer_files[name])
    inner: Any = content
    for step in path[:-1]:
        values = list(inner.values()) if isinstance(inner, dict) else inner
        inner = values[step % len(values)] if isinstance(values, list) and values else content
    if isinstance(inner, dict) and inner:
        inner[list(inner)[path[-1] % len(inner)]] = value
    for written in (damaged(tokenizer_files[name], how), json.dumps(content).encode(), NESTED, b""):
        (folder / "tokenizer" / name).write_bytes(written)
        outcome(lambda: load_tokenizer(str(folder / "tokenizer")), folder / "tokenizer")


def test_a_file_is_never_in_memory_at_once(folder: Path) -> None:
    path = folder / "long.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(40):
            stream.write(b'{"text": "' + b"x" * 1_000_000 + b'"}\n')
    tracemalloc.start()
    sizes = [len(text) for _, text in read_texts("long.jsonl.gz", path, "text")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [1_000_000] * 40
    assert peak < 12_000_000
