"""Task ``prepare``: tokenize a corpus into the cache."""

from __future__ import annotations

from typing import Any

from mom.config import DataConfig, RunConfig
from mom.console import build_table, print_line, print_table
from mom.data.prepare import PreparedCorpus, prepare
from mom.runs.directory import RunDirectory


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Prepare the request's corpus, or find it in the cache, and print its sizes.

    Returns:
        ``data/fingerprint``, ``data/folder``, ``data/vocab_size``, and for ``train`` and ``validation``
        ``data/<split>_tokens``, ``_documents``, and ``_bytes``.

    Raises:
        UsageError: the corpus, the tokenizer, or the cache cannot be used.
    """
    assert isinstance(config.data, DataConfig)
    prepared = prepare(config.data)
    _print_table(prepared)
    summary: dict[str, Any] = {
        "data/fingerprint": prepared.fingerprint,
        "data/folder": str(prepared.folder),
        "data/vocab_size": prepared.vocab_size,
    }
    for name, file in (("train", prepared.train), ("validation", prepared.validation)):
        summary[f"data/{name}_tokens"] = file.count
        summary[f"data/{name}_documents"] = file.num_documents
        summary[f"data/{name}_bytes"] = file.num_bytes
    return summary


def _print_table(prepared: PreparedCorpus) -> None:
    files = (prepared.train, prepared.validation)
    rows = [
        ["documents", *(f"{file.num_documents:,}" for file in files)],
        ["UTF-8 bytes", *(f"{file.num_bytes:,}" for file in files)],
        ["tokens", *(f"{file.count:,}" for file in files)],
        ["bytes per token", *(f"{file.bytes_per_token:.3f}" for file in files)],
    ]
    print_table(build_table(["", "train", "validation"], rows, title="Tokens"))
    print_line(f"Vocabulary of {prepared.vocab_size:,} tokens. Written to {prepared.folder}")
