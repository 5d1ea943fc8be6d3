"""Tokenization: the split of documents, batches, and marks to resume from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mom.data import prepare as preparing
from mom.data import tokenization as tokenization
from mom.data.corpora import Document, TextCorpus
from mom.data.prepare import prepare
from mom.data.token_files import TokenWriter
from mom.data.tokenization import split_position, tokenizer_sample, validation_limit
from mom.errors import UsageError
from tests.helpers.texts import cache_contents, never, some_texts, text_config


def test_batch_size_does_not_change_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(30)
    full = prepare(text_config(tmp_path / "a", texts))
    monkeypatch.setattr(tokenization, "BATCH_BYTES", 500)
    small = prepare(text_config(tmp_path / "b", texts, num_processes=1))
    assert small.key == full.key
    for ours, theirs in ((small.train, full.train), (small.validation, full.validation)):
        assert ours.path.read_bytes() == theirs.path.read_bytes()


def test_held_out_fraction() -> None:
    positions = [split_position(text) / 2**64 for text in some_texts(4_000, words=3)]
    assert np.mean(np.array(positions) < 0.1) == pytest.approx(0.1, abs=0.02)


class Listed(TextCorpus):
    """A corpus of given texts."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.kind, self.option, self.max_bytes, self.path = (
            texts,
            "text",
            "data.path",
            None,
            "here",
        )

    def _read(self):
        return (Document(str(i), text) for i, text in enumerate(self.texts))

    def estimate_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)


def held_out(texts: list[str], fraction: float) -> set[str]:
    limit = validation_limit(Listed(texts), fraction)
    return {text for text in texts if split_position(text) < limit}


@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip), unique=True, min_size=2, max_size=20),
    more=st.lists(st.text(min_size=1), max_size=5),
    fraction=st.floats(0.01, 0.99),
)
def test_adding_documents_moves_none(texts: list[str], more: list[str], fraction: float) -> None:
    before, after = held_out(texts, fraction), held_out(more + texts[::-1], fraction)
    if any(split_position(text) < int(fraction * 2**64) for text in before):
        assert after & set(texts) == before
    else:  # the fraction selected none, so one document was taken
        assert len(before) == 1


def test_small_corpus_still_holds_one_document_out() -> None:
    texts = some_texts(5)
    lowest = min(texts, key=split_position)
    limit = validation_limit(Listed(texts), 1e-9)
    assert [text for text in texts if split_position(text) < limit] == [lowest]
    assert validation_limit(Listed(texts[:1]), 1e-9) < split_position(texts[0])
    assert validation_limit(Listed([*texts, *some_texts(100, seed=1)]), 0.5) == 2**63


def test_tokenizer_is_trained_on_a_share_of_the_training_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(200)
    limit = 2**62
    training = [text for text in texts if split_position(text) >= limit]
    assert list(tokenizer_sample(Listed(texts), limit)) == training
    monkeypatch.setattr(tokenization, "TRAINING_BYTES", Listed(texts).estimate_bytes() // 4)
    sample = list(tokenizer_sample(Listed(texts), limit))
    assert 20 < len(sample) < 60
    assert set(sample) < set(training)
    assert texts.index(sample[0]) < 50 < 150 < texts.index(sample[-1]), "the sample is not spread"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_long_preparation_resumes_from_its_last_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    texts = some_texts(60)
    full = prepare(text_config(tmp_path / "whole", texts))
    config = text_config(tmp_path / "killed", texts)
    monkeypatch.setattr(tokenization, "BATCH_BYTES", 1_000)
    monkeypatch.setattr(tokenization, "MARK_BYTES", 4_000)
    write, written = TokenWriter.write, []

    def failing(self: TokenWriter, documents: object) -> None:
        write(self, documents)  # past the last mark, so it must be cut off
        written.append(1)
        if len(written) == 21:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "write", failing)
        with pytest.raises((UsageError, KeyboardInterrupt)):
            prepare(config)
    (part,) = cache_contents(config)
    assert part.endswith(".part")
    monkeypatch.setattr(preparing, "train_tokenizer", never)
    with caplog.at_level(logging.INFO, "mom"):
        resumed = prepare(config)
    (line,) = (r.getMessage() for r in caplog.records if "resuming after" in r.getMessage())
    assert 10 < int(line.split()[2]) < 50
    for ours, theirs in ((resumed.train, full.train), (resumed.validation, full.validation)):
        assert ours.path.read_bytes() == theirs.path.read_bytes()
        assert (ours.num_bytes, ours.num_documents) == (theirs.num_bytes, theirs.num_documents)
    assert cache_contents(config) == [resumed.folder.name]
