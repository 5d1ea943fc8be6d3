"""Where weights may come from: what is refused before PyTorch is imported, and with which hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from mom.errors import UsageError
from mom.runs.sources import check_source


@pytest.mark.parametrize("source", ["missing.ckpt", "./missing", "/missing/folder", "../missing"])
def test_a_path_that_does_not_exist_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match=rf"^ckpt must be .*, got {source}: no such file or folder$"):
        check_source(source, "ckpt")


def test_a_folder_without_a_model_is_refused_with_the_weights_that_are_in_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^init must be .*: the folder has no config\.json$"):
        check_source(tmp_path)
    weights = tmp_path / "checkpoints" / "best.ckpt"
    weights.parent.mkdir()
    weights.touch()
    with pytest.raises(UsageError, match=rf"a run directory; its weights are {weights}$"):
        check_source(tmp_path)


def test_what_may_be_weights_is_left_to_those_who_read_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "last.ckpt").touch()
    for source in ("gpt2", "user/name", tmp_path, tmp_path / "last.ckpt"):
        check_source(source)
