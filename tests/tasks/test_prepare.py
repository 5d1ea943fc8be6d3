"""The prepare task: its summary, and training from its cache."""

from __future__ import annotations

import dataclasses

from mom.config import PrepareConfig
from mom.data import prepare as preparing
from mom.runs.directory import RunDirectory
from mom.tasks import prepare
from tests.helpers.runs import tiny_request


def test_the_tokens_are_in_the_cache_afterwards(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(tiny_request(tmp_path), task=PrepareConfig())
    summary = prepare.run(config, RunDirectory(tmp_path / "run"))
    monkeypatch.setattr(preparing, "_build", None)
    corpus = preparing.prepare(dataclasses.replace(config.data, batch_size=7))
    assert summary == {
        "data/fingerprint": corpus.fingerprint,
        "data/folder": str(corpus.folder),
        "data/vocab_size": corpus.vocab_size,
        "data/train_tokens": corpus.train.count,
        "data/train_documents": corpus.train.num_documents,
        "data/train_bytes": corpus.train.num_bytes,
        "data/validation_tokens": corpus.validation.count,
        "data/validation_documents": corpus.validation.num_documents,
        "data/validation_bytes": corpus.validation.num_bytes,
    }
    out = capsys.readouterr().out
    assert f"{corpus.train.count:,}" in out and str(corpus.folder) in out
