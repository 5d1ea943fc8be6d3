"""XSum: reading, splitting, truncation, and labels."""

from __future__ import annotations

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mom.config import XsumConfig
from mom.data.xsum import XsumDataModule, load_xsum
from mom.errors import UsageError
from tests.helpers.checkpoints import small_tokenizer
from tests.helpers.xsum_files import articles, write_xsum

SMALL = {"sequence_length": 64, "batch_size": 2, "max_summary_tokens": 12, "separator": "|"}


def module(path, **changes) -> XsumDataModule:
    return XsumDataModule(XsumConfig(path=str(path), **{**SMALL, **changes}), 1, small_tokenizer())


def ids(text: str) -> list[int]:
    return small_tokenizer()(text)["input_ids"]


def test_a_folder_of_splits(tmp_path):
    splits = load_xsum(XsumConfig(path=str(write_xsum(tmp_path / "x"))))

    assert {name: len(rows) for name, rows in splits.items()} == {"train": 8, "validation": 5, "test": 3}
    expected = articles(8, seed=5)[2]
    assert (splits["train"][2].document, splits["train"][2].id) == (expected["document"], "2")


def test_one_file_is_split_by_its_texts(tmp_path):
    folder = write_xsum(tmp_path / "x", train=20)
    file = folder / "train.jsonl"
    splits = load_xsum(XsumConfig(path=str(file), validation_fraction=0.2))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 16, "validation": 4}

    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(reversed(lines)), encoding="utf-8")
    again = load_xsum(XsumConfig(path=str(file), validation_fraction=0.2))
    assert {a.id for a in again["validation"]} == {a.id for a in splits["validation"]}


def test_the_hub(monkeypatch):
    split = datasets.Dataset.from_list(articles(3))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: datasets.DatasetDict(train=split, validation=split, test=split)
    )
    assert [len(rows) for rows in load_xsum(XsumConfig()).values()] == [3, 3, 3]


def test_an_example_is_document_separator_summary_end(tmp_path):
    data = module(write_xsum(tmp_path / "x"))
    batch = next(iter(data.val_dataloader()))
    row = articles(5, seed=10)[0]
    prompt, summary = (
        ids(row["document"]) + ids("|"),
        [*ids(" " + row["summary"]), data.tokenizer.eos_token_id],
    )
    length = len(prompt) + len(summary)

    assert batch["input_ids"][0, :length].tolist() == prompt + summary
    assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
    assert batch["labels"][0, len(prompt) : length].tolist() == summary
    assert (batch["labels"][0, : len(prompt)] == -100).all()
    assert (batch["labels"][0, length:] == -100).all()


def test_truncation_spares_the_summary_and_is_counted(tmp_path, caplog):
    folder = write_xsum(tmp_path / "x")
    with caplog.at_level(logging.INFO):
        data = module(folder, sequence_length=40)
    full = module(folder)
    cut = 0
    for short, long in zip(data.splits["train"], full.splits["train"], strict=True):
        assert short.summary == long.summary
        assert len(short.prompt) + len(short.summary) <= 40
        assert short.prompt[-1:] == ids("|")
        assert short.prompt[:-1] == long.prompt[: len(short.prompt) - 1]
        cut += len(short.prompt) < len(long.prompt)
    assert cut > 0
    assert f"xsum train: 8 rows, {cut} documents truncated to fit 40 tokens" in caplog.text
    # The length of a generated summary is unknown, so the maximum is kept free.
    assert max(map(len, data.prompts("train"))) == 40 - 12


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"document": "a", "id": 1},
            r"cannot read data.path: .*train.jsonl:2 has no column summary; its columns are document, id",
        ),
        (
            {"document": "a", "summary": "word " * 60, "id": 1},
            r"data.sequence_length must leave room for the summary of \d+ tokens in .*train.jsonl:2, .*, got 64",
        ),
    ],
)
def test_errors_name_the_file_and_the_row(tmp_path, line, message):
    folder = write_xsum(tmp_path / "x")
    file = folder / "train.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines()
    rows[1] = json.dumps(line)
    file.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UsageError, match=f"^{message}"):
        module(folder)


def test_articles_without_text_are_skipped_and_ids_are_optional(tmp_path, caplog):
    folder = write_xsum(tmp_path / "x", validation=1)
    lines = [{"document": "", "summary": "b"}, {"document": "a", "summary": "b"}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (article,) = load_xsum(XsumConfig(path=str(folder)))["train"]
    assert (article.document, article.id) == ("a", "2")
    assert "skipped 1 articles without a document or a summary, such as " in caplog.text
    assert "train.jsonl:1" in caplog.text


def test_shards_of_parquet(tmp_path):
    folder = write_xsum(tmp_path / "x", validation=1)
    rows = articles(5)
    for number, part in enumerate((rows[:2], rows[2:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-0000{number}-of-00002.parquet")
    assert [a.id for a in load_xsum(XsumConfig(path=str(folder)))["train"]] == ["0", "1", "2", "3", "4"]


def test_missing_and_empty_files_are_rejected(tmp_path):
    folder = write_xsum(tmp_path / "x")
    (folder / "validation.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^cannot read data.path: .*x has no rows for validation"):
        module(folder)
    (folder / "validation.jsonl").unlink()
    with pytest.raises(
        UsageError,
        match=r"^data.path must be a folder with validation.jsonl, validation.csv or validation.parquet, got .*x",
    ):
        module(folder)
    for given, message in ((tmp_path / "y", "does not exist"), (folder / "t.txt", "a file ending in .jsonl")):
        (folder / "t.txt").touch()
        with pytest.raises(UsageError, match=f"^data.path must be .*{message}"):
            module(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_summary_tokens": 70},
            r"data.min_summary_tokens must be at most data.max_summary_tokens \(64\), got 70",
        ),
        ({"sequence_length": 64}, "data.max_summary_tokens must be at most 56 to leave room for a document "),
        ({"separator": ""}, "data.separator must not be empty"),
        ({"num_beams": 0}, "data.num_beams must be at least 1, got 0"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        XsumConfig(**options)
