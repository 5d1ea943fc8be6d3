"""Traces of a small model on random tokens, for tests that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mom.analysis.recording import batch_windows, record, split_windows
from mom.analysis.traces import Header, Traces
from mom.data.token_files import TokenFile
from mom.model import MoMForCausalLM
from tests.helpers.models import small_model

END = 0
"""The id that ends a document in :func:`token_file`."""


def token_file(folder: Path, ids: np.ndarray, name: str = "tokens.bin") -> TokenFile:
    """Write a token file with these ids."""
    path = folder / name
    path.write_bytes(ids.astype(np.uint16).tobytes())
    return TokenFile(path, "uint16", len(ids), 4 * len(ids), int((ids == END).sum()), "fingerprint")


def some_ids(count: int, vocab_size: int = 61, seed: int = 0) -> np.ndarray:
    """Return random ids, some of which end a document."""
    return np.random.default_rng(seed).integers(0, vocab_size, count)


def recorded(
    folder: Path,
    ids: np.ndarray,
    *,
    model: MoMForCausalLM | None = None,
    length: int = 16,
    batch: int = 2,
    stages: list[int] | None = None,
    num_tokens: int | None = None,
    **changes: Any,
) -> tuple[Traces, MoMForCausalLM]:
    """Record traces of a small model, with ``changes`` to its configuration, on these ids."""
    folder.mkdir(exist_ok=True)
    model = model or small_model(**changes)
    stages = list(range(model.config.num_stages)) if stages is None else stages
    header = Header(model.config.to_dict(), "small.ckpt", "random tokens", stages)
    windows = split_windows([token_file(folder, ids)], length, END)
    return record(model, batch_windows(windows, batch, num_tokens), folder, header), model
