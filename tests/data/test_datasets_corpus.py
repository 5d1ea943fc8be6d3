"""Data sets of the datasets library: local files and folders, downloaded or streamed."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mom.config import DataConfig
from mom.data.corpora import open_corpus
from mom.data.prepare import prepare
from mom.errors import UsageError
from tests.helpers.texts import some_texts, write_jsonl

TEXTS = ["", *some_texts(12)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder in the form of a data set, and a cache of the library's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub"))
    (tmp_path / "set").mkdir()
    table = pyarrow.table({"text": TEXTS, "id": list(range(len(TEXTS)))})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    write_jsonl(tmp_path / "lines.jsonl", TEXTS)
    return tmp_path


def config(folder: Path, path: str = "set", **changes) -> DataConfig:
    groups = {"corpus": "datasets", "path": str(folder / path), "cache_dir": str(folder / "cache")}
    return DataConfig(**(groups | {"tokenizer_vocab_size": 300, "validation_fraction": 0.3} | changes))


@pytest.mark.parametrize("path", ["set", "set/train.parquet", "lines.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_is_a_document(folder, path, streaming):
    corpus = open_corpus(config(folder, path, streaming=streaming))
    assert [document.text for document in corpus.documents()] == TEXTS[1:]
    assert corpus.estimate_bytes() >= sum(map(len, TEXTS))


def test_streaming_or_not_is_the_same_corpus_and_the_column_and_size_are_not(folder):
    first = open_corpus(config(folder)).fingerprint()
    assert open_corpus(config(folder, streaming=True)).fingerprint() == first
    assert open_corpus(config(folder, max_bytes=1_000)).fingerprint() != first
    assert open_corpus(config(folder, "lines.jsonl")).fingerprint() != first


def test_prepared_it_gives_the_tokens_that_the_same_text_gives(folder):
    ours = prepare(config(folder, streaming=True))
    texts = prepare(config(folder, "lines.jsonl", corpus="text"))
    assert ours.train.tokens.tolist() == texts.train.tokens.tolist()
    assert ours.folder.name.startswith("datasets-")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "nowhere"}, r"data\.path must be a dataset .*nowhere"),
        ({"text_column": "body"}, r"data\.text_column: .* has no column body; its columns are text, id"),
        ({"text_column": "id"}, r"data\.text_column: column id must hold strings, got int in "),
        ({"split": "test"}, r"data\.path must be .*test"),
    ],
)
def test_what_is_not_there_is_refused(folder, streaming, changes, said):
    with pytest.raises(UsageError, match=said):
        prepare(config(folder, **{"streaming": streaming, **changes}))
    assert not list((folder / "cache").glob("*.bin"))
