"""The tokenizer of a model: kept beside its checkpoints, found again from wherever the model is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mom.data.tokenizer import load_tokenizer, vocabulary_size
from mom.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from mom.model import MoMConfig
    from mom.runs.directory import RunDirectory

FOLDER = "tokenizer"
"""Folder of a run directory, beside ``checkpoints``, that holds the tokenizer."""

# Any of these in a folder of weights means that the tokenizer is there too.
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "encoder.json")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: RunDirectory) -> None:
    """Write a tokenizer into a run directory, whole or not at all; only the first process writes.

    Raises:
        RequestError: ``run_dir``, if it cannot be written.
    """
    if not directory.writes:
        return
    folder = directory.path / FOLDER
    building = directory.path / f".{FOLDER}.tmp"
    try:
        shutil.rmtree(building, ignore_errors=True)
        tokenizer.save_pretrained(str(building))
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except OSError as reason:
        raise RequestError("run_dir", directory.path, f"a folder that can be written: {reason}") from reason


def find_tokenizer(init: str, given: str | None) -> str:
    """Where the tokenizer of the weights ``init`` is, as ``data.tokenizer`` names it.

    Args:
        init: a checkpoint (its run's folder holds ``tokenizer/``), a folder of weights or a Hub id.
        given: ``data.tokenizer``, which wins.

    Raises:
        RequestError: ``data.tokenizer``, if there is none with the weights.
    """
    if given is not None:
        return given
    path = Path(init)
    if path.is_file():
        # checkpoints/last.ckpt of a run, or a checkpoint moved together with its tokenizer
        for folder in (path.absolute().parent.parent / FOLDER, path.absolute().parent / FOLDER):
            if folder.is_dir():
                return str(folder)
    elif not path.is_dir():
        return init  # a Hub id
    elif any((path / name).is_file() for name in _FILES):
        return init
    elif (path / FOLDER).is_dir():
        return str(path / FOLDER)
    raise RequestError(
        "data.tokenizer",
        "null",
        f"the tokenizer of {init}: none lies beside it, so its Hub name, folder or file has to be given",
    )


def tokenizer_of(init: str, given: str | None, config: MoMConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the weights ``init``, as :func:`find_tokenizer` finds it.

    Raises:
        RequestError: there is none, it cannot be loaded, or it has tokens that the model does not.
    """
    name = find_tokenizer(init, given)
    tokenizer = load_tokenizer(name)
    size = vocabulary_size(tokenizer)
    if size > config.vocab_size:
        raise RequestError(
            "data.tokenizer",
            f"{name} ({size} tokens)",
            f"the tokenizer of {init}, of at most {config.vocab_size} tokens",
        )
    return tokenizer
