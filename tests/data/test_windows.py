"""Windows of training and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mom.data.token_files import TokenFile, TokenWriter
from mom.data.windows import TokenWindows


def token_file(path: Path, count: int) -> TokenFile:
    writer = TokenWriter(path, np.dtype("uint16"), end_of_text=0)
    writer.write([(list(range(1, count)), count - 1)])
    return writer.finish("")


@given(count=st.integers(1, 60), length=st.integers(1, 20))
def test_windows_cover_the_tokens_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, length: int
) -> None:
    file = token_file(tmp_path_factory.mktemp("tokens") / "x.bin", count)
    windows = TokenWindows(file, length)
    ids = [token for i in range(len(windows)) for token in windows[i]["input_ids"].tolist()]
    assert ids == file.tokens[: len(ids)].tolist()
    assert 0 <= count - len(ids) < length
    for index in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows[index]


def test_window_is_what_the_model_takes(tmp_path: Path) -> None:
    window = TokenWindows(token_file(tmp_path / "x.bin", 10), 4)[1]
    assert {name: value.tolist() for name, value in window.items()} == {
        "input_ids": [5, 6, 7, 8],
        "labels": [5, 6, 7, 8],
    }
    assert all(value.dtype == torch.int64 for value in window.values())
