"""The cache: its location, and leftovers of dead processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mom.config import DataConfig
from mom.data import tokenization as tokenization
from mom.data.cache import cache_folder
from mom.data.prepare import prepare
from mom.errors import UsageError
from mom.runs.files import temporary_path
from mom.runs.lock import folder_lock
from tests.helpers.texts import cache_contents, some_texts, text_config


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = text_config(tmp_path, some_texts(5), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"cannot write to data\.cache_dir .*: "):
        prepare(config)


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


def test_location_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOM_CACHE", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path
    assert cache_folder(DataConfig(cache_dir="~/x")) == Path.home() / "x"
    monkeypatch.delenv("MOM_CACHE")
    assert cache_folder(DataConfig()) == Path.home() / ".cache" / "mom"


def test_unfinished_preparations_of_others_are_kept_for_a_week(tmp_path: Path) -> None:
    config = text_config(tmp_path, some_texts(20))
    cache = Path(str(config.cache_dir))
    for name in (".text-old.part", ".text-new.part"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".text-old.part", (0, 0))
    folder = prepare(config).folder
    assert cache_contents(config) == sorted([".text-new.part", folder.name])
