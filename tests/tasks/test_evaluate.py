"""Perplexity and bits per byte of a model on text, against sums over single tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from mom.config import bind
from mom.data.prepare import prepare
from mom.errors import UsageError
from mom.interop import load_model
from mom.runs.directory import RunDirectory
from mom.tasks import evaluate
from tests.helpers.checkpoints import request, small_tokenizer, write_run
from tests.helpers.texts import some_texts, write_jsonl

STATISTICS = {"effective_depth": {"_target_": "mom.callbacks.EffectiveDepth"}}


def evaluated(folder: Path, init: Path, task: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    texts = folder / "texts.jsonl"
    if not texts.exists():
        write_jsonl(texts, some_texts(12, words=30))
    groups = {
        "corpus": "text",
        "path": str(texts),
        "cache_dir": str(folder / "cache"),
        "sequence_length": 32,
        "batch_size": 3,
        "validation_fraction": 0.4,
        "num_processes": 1,
    }
    whole = request(
        folder,
        {"name": "evaluate", **(task or {})},
        data=groups | data,
        init=str(init),
        callbacks=STATISTICS,
    )
    config = bind(whole)
    return evaluate.run(config, RunDirectory(config.run_dir))


def tokens_of(folder: Path, split: str) -> torch.Tensor:
    """Return the evaluated token ids from the cache."""
    (found,) = (folder / "cache").glob("text-*")
    config = bind(
        {
            "run_dir": "x",
            "data": {
                "corpus": "text",
                "path": str(folder / "texts.jsonl"),
                "cache_dir": str(folder / "cache"),
                "tokenizer": str(found / "tokenizer"),
                "validation_fraction": 0.4,
            },
        }
    )
    return torch.from_numpy(getattr(prepare(config.data), split).tokens.astype("int64"))


def nats(model, ids: torch.Tensor, targets: range) -> float:
    """Return the sum of -log p over ``targets`` (positions in ``ids``), from one forward pass over ``ids``."""
    with torch.no_grad():
        log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return -sum(float(log_p[t - 1, ids[t]]) for t in targets)


def test_windows_that_do_not_overlap(tmp_path, capsys):
    init = write_run(tmp_path / "first")
    summary = evaluated(tmp_path, init)
    ids, model = tokens_of(tmp_path, "validation"), load_model(init).eval()
    windows = [ids[start : start + 32] for start in range(0, len(ids) - 31, 32)]
    expected = sum(nats(model, window, range(1, 32)) for window in windows) / (31 * len(windows))

    assert summary["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert summary["val/perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    bits = expected / math.log(2) / summary["data/bytes_per_token"]
    assert summary["val/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert summary["data/tokens"] == 31 * len(windows)
    assert summary["depth/graph"] == 1 + 1 + 1 + 4
    assert "depth/effective" in summary
    assert f"{expected:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("stride", [10, 31])
def test_with_a_stride_every_token_is_predicted_once(tmp_path, stride):
    init = write_run(tmp_path / "first")
    summary = evaluated(tmp_path, init, {"stride": stride})
    ids, model = tokens_of(tmp_path, "validation"), load_model(init).eval()
    total, known, start = 0.0, 1, 0
    while known < len(ids):
        start = min(start, len(ids) - 32)
        total += nats(model, ids[start : start + 32], range(known - start, 32))
        known = start + 32
        start += stride

    assert summary["data/tokens"] == len(ids) - 1
    assert summary["val/loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_all_documents_are_both_splits(tmp_path):
    init = write_run(tmp_path / "first")
    by_split = {
        split: evaluated(tmp_path, init, {"split": split, "stride": 16})
        for split in ("validation", "train", "all")
    }
    parts = [by_split["validation"], by_split["train"]]
    nats_of_parts = sum(part["val/loss"] * part["data/tokens"] for part in parts)

    assert by_split["all"]["data/tokens"] == sum(part["data/tokens"] for part in parts)
    assert by_split["all"]["val/loss"] * by_split["all"]["data/tokens"] == pytest.approx(
        nats_of_parts, rel=1e-5
    )


@pytest.mark.parametrize("split", ["all", "train"])
@pytest.mark.parametrize("byte_level", [True, False])
def test_bits_per_byte_of_token_files_count_the_bytes_of_the_tokens(split, byte_level, tmp_path):
    tokenizer = small_tokenizer()
    if not byte_level:
        tokenizer.backend_tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.save_pretrained(str(tmp_path / "files" / "tokenizer"))
    texts = {"train": some_texts(30), "val": some_texts(5, seed=1)}
    num_bytes = num_tokens = 0
    for name, documents in texts.items():
        ids = [id_ for text in documents for id_ in (*tokenizer.encode(text), tokenizer.eos_token_id)]
        np.array(ids, dtype=np.uint16).tofile(tmp_path / "files" / f"{name}.bin")
        if name in {"all": ("train", "val"), "train": ("train",)}[split]:
            num_bytes += sum(len(text.encode()) for text in documents)
            num_tokens += len(ids)
    init = write_run(tmp_path / "first")
    files = {"corpus": "token_files", "path": str(tmp_path / "files")}
    tokenizer_path = str(tmp_path / "files" / "tokenizer")
    summary = evaluated(tmp_path, init, {"split": split}, **files, tokenizer=tokenizer_path)

    if byte_level:
        assert summary["data/bytes_per_token"] == pytest.approx(num_bytes / num_tokens)
        bits = summary["val/loss"] / math.log(2) / (num_bytes / num_tokens)
        assert summary["val/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    else:
        assert not {"val/bits_per_byte", "data/bytes_per_token"} & summary.keys()


def two_corpora(folder: Path) -> dict[str, Any]:
    """Return the ``data`` options of a mixture, and write its texts."""
    paths = [
        write_jsonl(folder / f"{number}.jsonl", some_texts(12 + 8 * number, words=30, seed=number))
        for number in range(2)
    ]
    parts = {
        name: {"corpus": "text", "path": str(path)}
        for name, path in zip(("first", "second"), paths, strict=True)
    }
    parts["second"]["weight"] = 0
    return {"corpus": "mixture", "path": None, "mixture": parts}


@pytest.mark.parametrize("task", [{}, {"split": "all", "stride": 16}])
def test_each_corpus_of_a_mixture_is_measured_under_its_name(task, tmp_path, capsys):
    init = write_run(tmp_path / "first")
    mixture = two_corpora(tmp_path)
    summary = evaluated(tmp_path, init, task, **mixture)
    table = capsys.readouterr().out
    alone = {
        name: evaluated(tmp_path, init, task, path=part["path"]) for name, part in mixture["mixture"].items()
    }

    for name, part in alone.items():
        for metric in ("loss", "perplexity", "bits_per_byte"):
            assert summary[f"val/{name}/{metric}"] == pytest.approx(part[f"val/{metric}"], rel=1e-5)
        assert f"{part['val/loss']:.4f}" in table and name in table
    assert summary["data/tokens"] == sum(part["data/tokens"] for part in alone.values())
    nats_of_parts = sum(part["val/loss"] * part["data/tokens"] for part in alone.values())
    assert summary["val/loss"] * summary["data/tokens"] == pytest.approx(nats_of_parts, rel=1e-5)


def test_text_shorter_than_a_window_is_one_window(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "skip round"}\n', encoding="utf-8")
    summary = evaluated(tmp_path, write_run(tmp_path / "first"), {"split": "all"}, sequence_length=64)

    assert 1 < summary["data/tokens"] < 20


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({}, {"sequence_length": 65}, "data.sequence_length must be at most 64, .*, got 65"),
        ({"stride": 32}, {}, r"task.stride must be below data.sequence_length \(32\) or null, got 32"),
        ({}, {"tokenizer": "big"}, r"data.tokenizer must be .*at most 300 tokens, got .*big with 310"),
        ({"split": "train"}, {"validation_fraction": 0.999}, "task.split=train needs at least two tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_rejected(tmp_path, task, data, message):
    init = write_run(tmp_path / "first")
    if "tokenizer" in data:
        from mom.data.tokenizer import train_tokenizer

        train_tokenizer(some_texts(40), 310).save_pretrained(tmp_path / "big")
        data = {"tokenizer": str(tmp_path / "big")}
    with pytest.raises(UsageError, match=f"^{message}"):
        evaluated(tmp_path, init, task, **data)


def test_weights_without_a_tokenizer_need_one(tmp_path):
    init = write_run(tmp_path / "first")
    (tmp_path / "first" / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"^no tokenizer found with .*; set data.tokenizer to its "):
        evaluated(tmp_path, init)

    assert "val/loss" in evaluated(tmp_path, init, tokenizer=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None}, "task=evaluate requires init"),
        (
            {"ckpt": "some.ckpt", "init": None},
            "task=evaluate does not support ckpt; pass the weights as init",
        ),
        ({"prompt": "x"}, "unknown option prompt"),
    ],
)
def test_requests_that_make_no_sense(changes, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        bind({"run_dir": "x", "task": {"name": "evaluate"}, "init": "some.ckpt"} | changes)
