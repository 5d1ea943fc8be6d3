"""Preparation: file contents, cache keys, and recovery from failures."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mom.config import DataConfig
from mom.data import prepare as preparing
from mom.data import tokenization as tokenization
from mom.data.prepare import PreparedCorpus, prepare
from mom.data.token_files import TokenFile, TokenWriter
from mom.data.tokenization import split_position
from mom.errors import UsageError
from tests.helpers.texts import cache_contents, never, some_texts, text_config


def decoded(file: TokenFile, prepared: PreparedCorpus) -> list[str]:
    """Return the documents of a token file as text."""
    ends = np.flatnonzero(file.tokens == prepared.tokenizer.eos_token_id)
    starts = np.concatenate([[0], ends + 1])
    assert starts[-1] == file.count, "the last document has no end"
    return [
        prepared.tokenizer.decode(file.tokens[a:b].tolist()) for a, b in zip(starts[:-1], ends, strict=True)
    ]


def test_every_document_is_restored_once_in_order(tmp_path: Path) -> None:
    texts = [*some_texts(60), "quotes <|endoftext|> in the middle", "\tspaces \n\n and ends  "]
    prepared = prepare(text_config(tmp_path, texts))
    train, validation = (decoded(file, prepared) for file in (prepared.train, prepared.validation))
    limit = int(0.2 * 2**64)
    assert validation == [text for text in texts if split_position(text) < limit]
    assert train == [text for text in texts if split_position(text) >= limit]
    assert len(train) > len(validation) > 0
    for file, documents in ((prepared.train, train), (prepared.validation, validation)):
        assert file.num_documents == len(documents)
        assert file.num_bytes == sum(len(text.encode()) for text in documents)
        assert file.bytes_per_token == file.num_bytes / file.count


def test_second_time_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, some_texts(20))
    first = prepare(config)
    monkeypatch.setattr(preparing, "_build", never)
    # Neither the window nor the batch is part of the key, and a moved corpus is still the same.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(str(config.path), moved / "a.jsonl")
    again = prepare(dataclasses.replace(config, path=str(moved), sequence_length=8, batch_size=1))
    assert (again.train, again.validation, again.key) == (first.train, first.validation, first.key)
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_given_tokenizer_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, some_texts(20))
    trained = prepare(config)
    for name in ("one", "two"):
        trained.tokenizer.save_pretrained(str(tmp_path / name))
    shutil.rmtree(trained.folder)
    first = prepare(dataclasses.replace(config, tokenizer=str(tmp_path / "one")))
    assert first.train.tokens.tolist() == trained.train.tokens.tolist()
    monkeypatch.setattr(preparing, "_build", never)
    assert prepare(dataclasses.replace(config, tokenizer=str(tmp_path / "two"))).key == first.key


def test_a_trained_tokenizer_is_known_by_its_content_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config(tmp_path, some_texts(20))
    first = prepare(config)
    first.tokenizer.save_pretrained(str(tmp_path / "run" / "tokenizer"))
    saved = dataclasses.replace(config, tokenizer=str(tmp_path / "run" / "tokenizer"))
    before = cache_contents(config)
    monkeypatch.setattr(preparing, "_build", never)
    again = prepare(saved)
    assert (again.folder, again.train, again.validation) == (first.folder, first.train, first.validation)
    assert cache_contents(config) == before
    with pytest.raises(AssertionError):  # the same tokenizer, but other tokens
        prepare(dataclasses.replace(saved, validation_fraction=0.3))


@pytest.mark.parametrize(
    "changes", [{"tokenizer_vocab_size": 299}, {"validation_fraction": 0.3}, {"max_bytes": 5_000}]
)
def test_options_that_change_the_key(tmp_path: Path, changes: dict[str, object]) -> None:
    config = text_config(tmp_path, some_texts(20))
    first, second = prepare(config), prepare(dataclasses.replace(config, **changes))
    assert first.key != second.key
    assert first.folder != second.folder


def test_changed_text_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    first = prepare(text_config(tmp_path, some_texts(20)))
    second = prepare(text_config(tmp_path, [*some_texts(20), "one more"]))
    assert first.fingerprint != second.fingerprint
    assert second.train.num_documents + second.validation.num_documents == 21


def test_corpus_without_text(tmp_path: Path) -> None:
    config = text_config(tmp_path, ["", " \n"])
    with pytest.raises(UsageError, match=r"data\.path=.*a\.jsonl has no documents"):
        prepare(config)
    assert cache_contents(config) == []


def test_fault_in_the_corpus_leaves_nothing(tmp_path: Path) -> None:
    config = text_config(tmp_path, some_texts(20))
    with Path(str(config.path)).open("a") as stream:
        stream.write("{broken\n")
    with pytest.raises(UsageError, match=r"a\.jsonl:21"):
        prepare(config)
    assert cache_contents(config) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_and_interruption_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    config = text_config(tmp_path, some_texts(20))

    def failing(self: TokenWriter, documents: object) -> None:
        self._stream.write(b"something")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "write", failing)
        expected = UsageError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(
            expected, match=r"data\.cache_dir.*No space left" if expected is UsageError else ""
        ):
            prepare(config)
    assert cache_contents(config) == []
    assert prepare(config).train.count > 0


def test_finished_cache_is_read_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, some_texts(20))
    first = prepare(config)
    monkeypatch.setattr(preparing, "locked", never)  # as on a file system that is mounted read-only
    assert prepare(config).train == first.train


@pytest.mark.parametrize("how", ["missing", "cut off", "first byte", "last bytes"])
@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "meta.json", "tokenizer/tokenizer.json"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, name: str, how: str) -> None:
    config = text_config(tmp_path, some_texts(20))
    first = prepare(config)
    tokens = first.train.tokens.tolist()
    path = first.folder / name
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        os.truncate(path, path.stat().st_size - 2)
    else:
        content[0 if how == "first byte" else -7] ^= 1
        path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "locked", never)
        with pytest.raises(AssertionError):
            prepare(config)
    assert prepare(config).train.tokens.tolist() == tokens
    assert cache_contents(config) == [first.folder.name]


def prepare_beside_another(config: DataConfig, both: Any, results: Any) -> None:
    """Prepare in another process, after both processes found nothing in the cache."""
    find, build, built = preparing._open, preparing._build, []
    looks = itertools.count()

    def found_with_the_other(folder: Path, key: str) -> PreparedCorpus | None:
        found = find(folder, key)
        if next(looks) == 0:
            assert found is None
            both.wait(60)
        return found

    def counted(*arguments: Any) -> None:
        built.append(1)
        build(*arguments)

    preparing._open, preparing._build = found_with_the_other, counted
    prepared = prepare(config)
    results.put((len(built), prepared.train, prepared.train.tokens.tolist()))


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    config = text_config(tmp_path, some_texts(20))
    spawn = multiprocessing.get_context("spawn")
    both, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=prepare_beside_another, args=(config, both, results)) for _ in range(2)]
    for process in processes:
        process.start()
    first, other = (results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted([first[0], other[0]]) == [0, 1]
    assert first[1:] == other[1:]
    assert cache_contents(config) == [first[1].path.parent.name]


def test_python_stdlib(tmp_path: Path) -> None:
    config = DataConfig(max_bytes=400_000, cache_dir=str(tmp_path), tokenizer_vocab_size=400)
    prepared = prepare(config)
    assert prepared.vocab_size == 400
    assert prepared.folder.name.startswith("python_stdlib-")
    assert 1.5 < prepared.validation.bytes_per_token < 4
    texts = decoded(prepared.validation, prepared)
    assert len(texts) == prepared.validation.num_documents > 0
    meta = (prepared.folder / "meta.json").read_text()
    assert str(tmp_path) not in meta


def test_the_size_is_logged_before_tokenizing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10))
    config = text_config(tmp_path, some_texts(20))
    with caplog.at_level(logging.INFO, "mom"):
        prepare(config)
    lines = [record.getMessage() for record in caplog.records]
    assert any(" kB of text" in line and "; 10 bytes free" in line for line in lines)
    assert f"{config.cache_dir} probably has too little space for the tokens" in lines
