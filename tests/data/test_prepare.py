"""Preparation: what is in the files, what makes a new cache folder, and what faults leave behind."""

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
from hypothesis import given
from hypothesis import strategies as st

from mom.config import DataConfig
from mom.data import prepare as preparing
from mom.data import tokenization as tokenization
from mom.data.cache import cache_folder
from mom.data.corpora import Document, TextCorpus
from mom.data.prepare import PreparedCorpus, prepare
from mom.data.token_files import TokenFile, TokenWriter
from mom.data.tokenization import split_position, tokenizer_sample, validation_limit
from mom.errors import UsageError
from mom.runs.files import temporary_path
from mom.runs.lock import folder_lock
from tests.helpers.texts import some_texts, write_jsonl


def text_config(folder: Path, texts: list[str], **changes: object) -> DataConfig:
    folder.mkdir(exist_ok=True)
    path = write_jsonl(folder / "a.jsonl", texts)
    settings: dict[str, object] = {
        "corpus": "text",
        "path": str(path),
        "cache_dir": str(folder / "cache"),
        "tokenizer_vocab_size": 300,
        "validation_fraction": 0.2,
    }
    return DataConfig(**(settings | changes))


def decoded(file: TokenFile, prepared: PreparedCorpus) -> list[str]:
    """The documents of a token file as text."""
    ends = np.flatnonzero(file.tokens == prepared.tokenizer.eos_token_id)
    starts = np.concatenate([[0], ends + 1])
    assert starts[-1] == file.count, "the last document has no end"
    return [
        prepared.tokenizer.decode(file.tokens[a:b].tolist()) for a, b in zip(starts[:-1], ends, strict=True)
    ]


def never(*_: object, **__: object) -> None:
    raise AssertionError("the cache was not used")


def cache_contents(config: DataConfig) -> list[str]:
    return sorted(path.name for path in Path(str(config.cache_dir)).iterdir() if path.suffix != ".lock")


def test_every_text_comes_back_in_order_and_once(tmp_path: Path) -> None:
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


def test_batches_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(30)
    whole = prepare(text_config(tmp_path / "a", texts))
    monkeypatch.setattr(tokenization, "BATCH_BYTES", 500)
    small = prepare(text_config(tmp_path / "b", texts, num_processes=1))
    assert small.key == whole.key
    for ours, theirs in ((small.train, whole.train), (small.validation, whole.validation)):
        assert ours.path.read_bytes() == theirs.path.read_bytes()


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
    one = prepare(dataclasses.replace(config, tokenizer=str(tmp_path / "one")))
    assert one.train.tokens.tolist() == trained.train.tokens.tolist()
    monkeypatch.setattr(preparing, "_build", never)
    assert prepare(dataclasses.replace(config, tokenizer=str(tmp_path / "two"))).key == one.key


@pytest.mark.parametrize(
    "changes", [{"tokenizer_vocab_size": 299}, {"validation_fraction": 0.3}, {"max_bytes": 5_000}]
)
def test_what_makes_another_key(tmp_path: Path, changes: dict[str, object]) -> None:
    config = text_config(tmp_path, some_texts(20))
    first, second = prepare(config), prepare(dataclasses.replace(config, **changes))
    assert first.key != second.key
    assert first.folder != second.folder


def test_changed_text_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    first = prepare(text_config(tmp_path, some_texts(20)))
    second = prepare(text_config(tmp_path, [*some_texts(20), "one more"]))
    assert first.fingerprint != second.fingerprint
    assert second.train.num_documents + second.validation.num_documents == 21


def test_share_held_out_is_about_the_fraction() -> None:
    positions = [split_position(text) / 2**64 for text in some_texts(4_000, words=3)]
    assert np.mean(np.array(positions) < 0.1) == pytest.approx(0.1, abs=0.02)


class Listed(TextCorpus):
    """A corpus of the texts given."""

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
def test_more_documents_move_none(texts: list[str], more: list[str], fraction: float) -> None:
    before, after = held_out(texts, fraction), held_out(more + texts[::-1], fraction)
    if any(split_position(text) < int(fraction * 2**64) for text in before):
        assert after & set(texts) == before
    else:  # one document was taken where the fraction gave none
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


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = text_config(tmp_path, some_texts(5), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"cannot write to data\.cache_dir .*: "):
        prepare(config)


def test_finished_cache_is_read_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, some_texts(20))
    first = prepare(config)
    monkeypatch.setattr(preparing, "locked", never)  # as on a file system that is mounted read-only
    assert prepare(config).train == first.train


@pytest.mark.parametrize("damage", ["train.bin", "validation.bin", "meta.json", "no meta.json"])
def test_damaged_cache_is_built_anew(tmp_path: Path, damage: str) -> None:
    config = text_config(tmp_path, some_texts(20))
    first = prepare(config)
    tokens = first.train.tokens.tolist()
    path = first.folder / damage.removeprefix("no ")
    if damage.startswith("no "):
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 2)
    assert prepare(config).train.tokens.tolist() == tokens
    assert cache_contents(config) == [first.folder.name]


def test_leftovers_of_dead_processes_are_removed_but_not_work_in_progress(tmp_path: Path) -> None:
    config = text_config(tmp_path, some_texts(20))
    folder = prepare(config).folder
    shutil.rmtree(folder)
    dead, dead_too, alive = (
        temporary_path(folder.parent / name) for name in (folder.name, "text-dead", "text-alive")
    )
    for leftover in (dead, dead_too, alive):
        leftover.mkdir()
        (leftover / "train.bin").write_bytes(b"half")
    with folder_lock(folder.parent / "text-alive"):
        prepare(config)
    assert cache_contents(config) == sorted([alive.name, folder.name])


def prepare_beside_another(config: DataConfig, both: Any, results: Any) -> None:
    """In a process of its own: find nothing in the cache, as the other one does, then prepare."""
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
    one, other = (results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted([one[0], other[0]]) == [0, 1]
    assert one[1:] == other[1:]
    assert cache_contents(config) == [one[1].path.parent.name]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOM_CACHE", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path
    assert cache_folder(DataConfig(cache_dir="~/x")) == Path.home() / "x"
    monkeypatch.delenv("MOM_CACHE")
    assert cache_folder(DataConfig()) == Path.home() / ".cache" / "mom"


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


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_long_preparation_goes_on_from_its_last_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    texts = some_texts(60)
    whole = prepare(text_config(tmp_path / "whole", texts))
    config = text_config(tmp_path / "killed", texts)
    monkeypatch.setattr(tokenization, "BATCH_BYTES", 1_000)
    monkeypatch.setattr(tokenization, "MARK_BYTES", 4_000)
    write, written = TokenWriter.write, []

    def failing(self: TokenWriter, documents: object) -> None:
        write(self, documents)  # past the last mark, which has to be cut off
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
    for ours, theirs in ((resumed.train, whole.train), (resumed.validation, whole.validation)):
        assert ours.path.read_bytes() == theirs.path.read_bytes()
        assert (ours.num_bytes, ours.num_documents) == (theirs.num_bytes, theirs.num_documents)
    assert cache_contents(config) == [resumed.folder.name]


def test_unfinished_preparations_of_others_are_kept_for_a_week(tmp_path: Path) -> None:
    config = text_config(tmp_path, some_texts(20))
    cache = Path(str(config.cache_dir))
    for name in (".text-old.part", ".text-new.part"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".text-old.part", (0, 0))
    folder = prepare(config).folder
    assert cache_contents(config) == sorted([".text-new.part", folder.name])


def test_how_much_there_is_to_do_is_said_before_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10))
    config = text_config(tmp_path, some_texts(20))
    with caplog.at_level(logging.INFO, "mom"):
        prepare(config)
    lines = [record.getMessage() for record in caplog.records]
    assert any("MB of text" in line and "MB free" in line for line in lines)
    assert f"{config.cache_dir} probably has too little space for the tokens" in lines
