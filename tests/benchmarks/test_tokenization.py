"""The tokenization benchmark: both contenders read the same text, at two sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks import tokenization as bench
from mom.config import DataConfig
from mom.data.corpora import open_corpus
from mom.data.tokenizer import train_tokenizer
from tests.helpers.texts import some_texts, write_jsonl


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    texts = some_texts(30)
    path = write_jsonl(tmp_path / "some.jsonl", texts)
    train_tokenizer(texts, 300).save_pretrained(str(tmp_path / "tokenizer"))
    return DataConfig(
        corpus="text",
        path=str(path),
        tokenizer=str(tmp_path / "tokenizer"),
        num_processes=1,
        cache_dir=str(tmp_path / "cache"),
    )


def test_both_contenders_tokenize_the_same_text(config):
    size = sum(len(text.encode()) for text in some_texts(30))
    alone, everything = bench.library(config), bench.preparation(config)
    assert alone.text == everything.text == size
    for measured in (alone, everything):
        assert measured.seconds > 0 and measured.processor > 0 and measured.peak > 50e6


def test_a_row_has_a_cell_for_each_column(config):
    row = bench.compare(config, repeats=1)
    assert len(row) == 8 and row[3].endswith("%")


def test_the_documents_of_a_file_are_repeated_to_two_sizes(tmp_path, config):
    assert config.path is not None and config.tokenizer is not None
    sizes = []
    for name, repeated in bench.repeated(Path(config.path), config.tokenizer, 1, tmp_path):
        assert name == "some"
        documents = open_corpus(dataclasses.replace(repeated, cache_dir=None)).documents()
        sizes.append(sum(len(document.text.encode()) for document in documents))
    assert sizes == pytest.approx([1e6, 1e7], rel=0.01)
