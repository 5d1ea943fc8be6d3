"""Token files: what is written is what is read."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mom.data.token_files import TokenWriter, bits_per_byte, token_dtype


@given(
    batches=st.lists(st.lists(st.tuples(st.lists(st.integers(0, 65_534), max_size=20), st.integers(0, 99)))),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[list[int], int]]], dtype: str
) -> None:
    writer = TokenWriter(tmp_path_factory.mktemp("tokens") / "x.bin", np.dtype(dtype), end_of_text=65_535)
    for batch in batches:
        writer.write(batch)
    file = writer.finish("print")
    documents = [document for batch in batches for document in batch]
    expected = [token for ids, _ in documents for token in [*ids, 65_535]]
    assert file.tokens.tolist() == expected
    assert file.tokens.dtype == dtype
    assert (file.count, file.num_documents, file.fingerprint) == (len(expected), len(documents), "print")
    assert file.num_bytes == sum(size for _, size in documents)


def test_incomplete_file(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "x.bin", np.dtype("uint16"), end_of_text=0)
    writer.write([([1, 2, 3], 3)])
    file = writer.finish("")
    assert file.is_complete()
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert not file.is_complete()
    with pytest.raises(ValueError, match="does not hold 4 tokens"):
        _ = file.tokens
    file.path.unlink()
    assert not file.is_complete()


def test_pickled_by_path(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "x.bin", np.dtype("uint16"), end_of_text=0)
    writer.write([(list(range(10_000)), 0)])
    file = writer.finish("")
    assert file.tokens[17] == 17
    pickled = pickle.dumps(file)
    assert len(pickled) < 1_000
    again = pickle.loads(pickled)
    assert again == file
    assert again.tokens[17] == 17


def test_tokens_cannot_be_written_through(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "x.bin", np.dtype("uint16"), end_of_text=0)
    writer.write([([1], 1)])
    with pytest.raises(ValueError, match="read-only"):
        writer.finish("").tokens[0] = 2


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65_535, "uint16"), (65_536, "uint32")])
def test_token_dtype(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


def test_bits_per_byte(tmp_path: Path) -> None:
    # Guessing evenly among 256 bytes costs 8 bits a byte; the end of the document is one token more.
    writer = TokenWriter(tmp_path / "x.bin", np.dtype("uint16"), end_of_text=256)
    writer.write([(list(b"abc"), 3)])
    file = writer.finish("")
    assert file.bytes_per_token == 3 / 4
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256), file.bytes_per_token) == pytest.approx(8 * 4 / 3)
