"""The row on tokenization: both contenders read the same text."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tokenization as bench
from mom.config import DataConfig
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
    assert alone.seconds > 0 and everything.seconds > 0


def test_preparation_is_divided_by_the_library(config):
    found = bench.compare(config, repeats=1)
    assert found.value == found.seconds["preparation"][0] / found.seconds["library"][0] > 0
