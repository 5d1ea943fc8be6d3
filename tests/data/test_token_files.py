"""Token files: writing, reading, and errors."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.config import DataConfig
from mom.data import token_files
from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.prepare import prepare
from mom.data.token_files import TokenFile, TokenWriter, bits_per_byte, token_dtype
from mom.errors import UsageError
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer
from tests.helpers.texts import some_texts


@settings(deadline=None)
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
    with pytest.raises(UsageError, match="must hold 4 tokens of type uint16"):
        file.open()
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


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_token_dtype(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


def test_bits_per_byte(tmp_path: Path) -> None:
    # A uniform guess among 256 bytes costs 8 bits per byte; the end of the document is an additional token.
    writer = TokenWriter(tmp_path / "x.bin", np.dtype("uint16"), end_of_text=256)
    writer.write([(list(b"abc"), 3)])
    file = writer.finish("")
    assert file.bytes_per_token == 3 / 4
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256), file.bytes_per_token) == pytest.approx(8 * 4 / 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer, and token files like those of common scripts: uint16 IDs, documents with an end of text."""
    folder = tmp_path_factory.mktemp("existing")
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    for name, texts in (("train", some_texts(30)), ("val", some_texts(5, seed=1))):
        ids = [number for text in texts for number in (*tokenizer.encode(text), tokenizer.eos_token_id)]
        np.array(ids, dtype=np.uint16).tofile(folder / f"{name}.bin")
    return folder


def config(folder: Path, **changes) -> DataConfig:
    return DataConfig(
        **{
            "corpus": "token_files",
            "path": str(folder),
            "tokenizer": str(folder / "tokenizer"),
            "sequence_length": 16,
            **changes,
        }
    )


def test_windows_are_the_files_ids_and_nothing_is_written(folder):
    before = sorted(folder.rglob("*"))
    data = LanguageModelingDataModule(config(folder), seed=0)
    data.setup()
    ids = np.fromfile(folder / "train.bin", dtype=np.uint16)
    assert data.num_train_tokens == len(ids)
    assert data.train_windows[3]["input_ids"].tolist() == ids[48:64].tolist()
    assert data.vocab_size == VOCABULARY
    assert sorted(folder.rglob("*")) == before


def test_bytes_of_the_validation_text_are_counted(folder):
    validation = prepare(config(folder)).validation
    assert validation.num_bytes == sum(len(text.encode()) for text in some_texts(5, seed=1))


def test_the_key_depends_on_the_content(folder, tmp_path):
    first = prepare(config(folder))
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert prepare(config(folder, path=str(tmp_path))).key == first.key
    changed = np.fromfile(tmp_path / "val.bin", dtype=np.uint16)
    changed[-2] += 1
    changed.tofile(tmp_path / "val.bin")
    assert prepare(config(folder, path=str(tmp_path))).key != first.key


def test_every_id_is_checked_and_the_result_is_remembered(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "_BLOCK_TOKENS", 1000)
    ids = np.full(10_000, 7, dtype=np.uint16)
    for place in (0, 4_321, 9_999):
        for name in ("train.bin", "val.bin"):
            wrong = ids.copy()
            wrong[place] = VOCABULARY
            (wrong if name == "train.bin" else ids).tofile(tmp_path / name)
        with pytest.raises(UsageError, match=r"which has the ID 300, got .* with 300 tokens"):
            prepare(config(folder, path=str(tmp_path), cache_dir=str(tmp_path / f"cache{place}")))
    ids.tofile(tmp_path / "train.bin")
    cached = config(folder, path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    key = prepare(cached).key
    with monkeypatch.context() as patch:
        patch.setattr(token_files, "_text_bytes", lambda *_: 1)
        patch.setattr(TokenFile, "blocks", lambda _: pytest.fail("read again"))
        assert prepare(cached).key == key
    ids[5_000] += 1
    ids.tofile(tmp_path / "train.bin")
    assert prepare(cached).key != key
    for scan in (tmp_path / "cache" / "token_files").iterdir():
        scan.write_text("{broken")
    assert prepare(cached).key != key


def test_a_file_that_is_cut_off_or_deleted_in_use(folder, tmp_path):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    data = LanguageModelingDataModule(config(folder, path=str(tmp_path)), seed=0)
    data.setup()
    windows = data.train_windows
    expected = windows[len(windows) - 1]["input_ids"]
    os.truncate(tmp_path / "train.bin", 100)
    assert len(windows[0]["input_ids"]) == 16
    with pytest.raises(
        UsageError, match=r"^cannot read data.path: .*train.bin must hold .* it was changed while"
    ):
        windows[len(windows) - 1]
    (tmp_path / "train.bin").write_bytes((folder / "train.bin").read_bytes())
    (tmp_path / "train.bin").unlink()
    assert windows[len(windows) - 1]["input_ids"].tolist() == expected.tolist()


def test_larger_vocabularies_are_read_as_uint32(folder, tmp_path):
    from tokenizers import AddedToken

    tokenizer = small_tokenizer()
    tokenizer.add_tokens([AddedToken(f"<{number}>") for number in range(65_300)])
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    for name in ("train.bin", "validation.bin"):
        np.array([65_590, 3, 4, 5], dtype=np.uint32).tofile(tmp_path / name)
    prepared = prepare(config(tmp_path))
    assert prepared.train.tokens.tolist() == [65_590, 3, 4, 5]


def missing(folder: Path) -> None:
    (folder / "val.bin").unlink()


def odd(folder: Path) -> None:
    (folder / "train.bin").write_bytes(b"\0\0\0")


def foreign(folder: Path) -> None:
    np.array([VOCABULARY] * 40, dtype=np.uint16).tofile(folder / "train.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"data\.path must be a folder with train\.bin and val\.bin, got "),
        (odd, r"data\.path: .*train\.bin must be a file of uint16 tokens of .*, got 3 bytes"),
        (
            foreign,
            r"data\.tokenizer must be the tokenizer of .*, which has the ID 300, got .* with 300 tokens",
        ),
    ],
)
def test_unreadable_files_are_rejected(folder, tmp_path, spoil, message):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        prepare(config(folder, path=str(tmp_path)))


def test_the_tokenizer_is_required(folder):
    with pytest.raises(UsageError, match=r"requires data\.tokenizer"):
        config(folder, tokenizer=None)
