"""Tokenize a corpus into the cache, and nothing else."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table

from mom.config import DataConfig, RunConfig
from mom.console import print_table, standard_output
from mom.data.prepare import PreparedCorpus, prepare
from mom.runs.directory import RunDirectory


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Prepare the corpus of the request, or find it in the cache, and say what is in it.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        ``data/fingerprint``, ``data/folder``, ``data/vocab_size``, and for ``train`` and ``validation``
        ``data/<split>_tokens``, ``_documents`` and ``_bytes``.

    Raises:
        RequestError: the corpus, the tokenizer or the cache cannot be used.
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


@rank_zero_only
def _print_table(prepared: PreparedCorpus) -> None:
    table = Table("", "train", "validation", title="Tokens", title_justify="left")
    files = (prepared.train, prepared.validation)
    table.add_row("documents", *(f"{file.num_documents:,}" for file in files))
    table.add_row("UTF-8 bytes", *(f"{file.num_bytes:,}" for file in files))
    table.add_row("tokens", *(f"{file.count:,}" for file in files))
    table.add_row("bytes per token", *(f"{file.bytes_per_token:.3f}" for file in files))
    console = standard_output()
    print_table(table, console)
    console.print(f"{prepared.vocab_size:,} tokens in the vocabulary. In {prepared.folder}", soft_wrap=True)
