"""Tokenizers: training, loading, and errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mom.data import tokenizer as tokenizers
from mom.data.tokenizer import END_OF_TEXT, TextEncoder, load_tokenizer, tokenizer_identity, train_tokenizer
from mom.errors import UsageError
from tests.helpers.texts import some_texts


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(some_texts(50), 300)


def write_gpt2(folder: Path, vocabulary: str = "encoder.json", merges: str = "vocab.bpe") -> Path:
    """Write a miniature GPT-2 tokenizer: the 256 bytes, two merges, and the end of text."""
    folder.mkdir(exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [letters[byte] for byte in range(256)] + ["he", "Ġhe", END_OF_TEXT]
    (folder / vocabulary).write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / merges).write_text("#version: 0.2\nh e\nĠ he\n", encoding="utf-8")
    return folder


def test_training_is_deterministic(trained: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(some_texts(50), 300)
    assert tokenizer_identity(again) == tokenizer_identity(trained)
    assert tokenizer_identity(train_tokenizer(some_texts(50), 299)) != tokenizer_identity(trained)
    assert tokenizers.vocabulary_size(trained) == 300
    assert trained.eos_token == END_OF_TEXT
    assert trained.eos_token_id == 0


def test_training_uses_a_limited_part_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(50)
    monkeypatch.setattr(tokenizers, "TRAINING_BYTES", sum(len(text.encode()) for text in texts[:10]))
    assert tokenizer_identity(train_tokenizer(texts, 300)) == tokenizer_identity(
        train_tokenizer(texts[:10], 300)
    )


def test_vocabulary_must_hold_all_bytes() -> None:
    with pytest.raises(UsageError, match=r"data\.tokenizer_vocab_size must be at least 257, .*, got 256"):
        train_tokenizer(["text"], 256)


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.just(f"a {END_OF_TEXT} b"))
def test_decoding_restores_every_text(trained: PreTrainedTokenizerFast, text: str) -> None:
    ids = TextEncoder(trained).encode([text])[0]
    assert trained.decode(ids) == text
    assert trained.eos_token_id not in ids


def test_saved_and_loaded(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trained.save_pretrained(str(tmp_path))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(path))
        assert tokenizer_identity(loaded) == tokenizer_identity(trained)
        assert loaded.eos_token_id == trained.eos_token_id


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_files(tmp_path: Path, names: tuple[str, str]) -> None:
    loaded = load_tokenizer(str(write_gpt2(tmp_path, *names)))
    assert loaded.eos_token_id == 258
    assert tokenizers.vocabulary_size(loaded) == 259
    ids = TextEncoder(loaded).encode(["he he é"])[0]
    assert ids == [256, 257, 32, 0xC3, 0xA9]
    assert loaded.decode(ids) == "he he é"
    assert loaded("he" + END_OF_TEXT)["input_ids"] == [256, 258]


def test_broken_merges_error_names_the_line(tmp_path: Path) -> None:
    (write_gpt2(tmp_path) / "vocab.bpe").write_text("#version: 0.2\nh e\nbroken\n")
    with pytest.raises(UsageError, match=r"data\.tokenizer: .*vocab\.bpe:3 must have two tokens"):
        load_tokenizer(str(tmp_path))


def test_merges_of_another_vocabulary_are_rejected(tmp_path: Path) -> None:
    (write_gpt2(tmp_path) / "vocab.bpe").write_text("q q\n")
    with pytest.raises(UsageError, match=r"data\.tokenizer"):
        load_tokenizer(str(tmp_path))


def test_no_end_of_text(trained: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    content = json.loads(trained.backend_tokenizer.to_str().replace(END_OF_TEXT, "<|start|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="end-of-text token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["./missing/folder", "a/b/c", "no spaces", "missing.txt/", ""])
def test_no_such_tokenizer(name: str) -> None:
    with pytest.raises(UsageError, match=r"data\.tokenizer must be null to train one, "):
        load_tokenizer(name)


def test_unknown_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str, **_: bool) -> None:
        raise OSError(f"{name} is not a model identifier\nmore about it")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unknown)
    with pytest.raises(UsageError, match="nobody/nothing is not a model identifier") as caught:
        load_tokenizer("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_folder_without_a_tokenizer_and_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which has no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"data\.tokenizer"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("before", "count", "inside"), [(None, None, "true"), (None, 1, "false"), ("false", 2, "false")]
)
def test_threads_are_disabled_for_processes_forked_later(
    monkeypatch: pytest.MonkeyPatch, before: str | None, count: int | None, inside: str
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    if before is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    with tokenizers.tokenizer_threads(count):
        assert os.environ["TOKENIZERS_PARALLELISM"] == inside
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
