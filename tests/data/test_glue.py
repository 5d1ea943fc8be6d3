"""GLUE's nine tasks in all file formats, and errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers.processors import BertProcessing

from mom.config import GlueConfig
from mom.data.glue import TASKS, GlueDataModule, load_glue, truncate
from mom.data.tokenizer import END_OF_TEXT
from mom.errors import UsageError
from tests.helpers.checkpoints import small_tokenizer
from tests.helpers.glue_files import FOLDERS, NAMES, sentences, write_glue


def load(path: Path | None, name: str, **changes):
    return load_glue(GlueConfig(name=name, path=None if path is None else str(path), **changes))


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("inside", [False, True], ids=["glue_folder", "task_folder"])
def test_every_task_in_glues_own_format(tmp_path, name, inside):
    folder = write_glue(tmp_path, name)
    splits = load(folder if inside else tmp_path, name)
    task = TASKS[name]
    sets = ["_matched", "_mismatched"] if name == "mnli" else [""]

    assert list(splits) == ["train", *(f"validation{s}" for s in sets), *(f"test{s}" for s in sets)]
    names = NAMES.get(name, ("0", "1"))
    for number, example in enumerate(splits["train"]):
        assert example.texts == tuple(sentences(number)[: len(task.texts)])
        given = names[number % len(names)]
        expected = (
            float(given)
            if name == "stsb"
            else task.labels.index(given)
            if given in task.labels
            else int(given)
        )
        assert example.label == expected
    assert len(splits["train"]) == 6
    for s in sets:
        assert len(splits[f"validation{s}"]) == 4
        assert [example.label for example in splits[f"test{s}"]] == [None] * 3
        assert splits[f"test{s}"][1].texts[0] == sentences(1)[0]


def test_the_submission_names_and_metrics_are_glues():
    assert {name: task.folder for name, task in TASKS.items()} == FOLDERS
    assert {name: task.metrics for name, task in TASKS.items()} == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("f1", "accuracy"),
        **dict.fromkeys(("mnli", "qnli", "rte", "wnli"), ("accuracy",)),
    }


@pytest.mark.parametrize("name", ["sst2", "rte", "mrpc", "stsb"])
def test_a_missing_header_is_detected(tmp_path, name):
    folder = write_glue(tmp_path, name)
    expected = load(tmp_path, name)
    for file in folder.glob("*.tsv"):
        file.write_bytes(file.read_bytes().split(b"\n", 1)[1])

    assert load(tmp_path, name) == expected


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_hubs_columns_in_local_files(tmp_path, form):
    rows = [
        {"premise": "a", "hypothesis": "b", "label": 2, "idx": 0},
        {"premise": "c", "hypothesis": "d", "label": 0, "idx": 1},
    ]
    for split in ("train", "validation_matched", "validation_mismatched", "test_matched"):
        given = [row | ({"label": -1} if "test" in split else {}) for row in rows]
        if form == "jsonl":
            lines = "".join(json.dumps(row) + "\n" for row in given)
            (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        else:
            table = pyarrow.Table.from_pylist(given)
            pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load(tmp_path, "mnli")

    assert [(example.texts, example.label) for example in splits["train"]] == [
        (("a", "b"), 2),
        (("c", "d"), 0),
    ]
    assert splits["test_matched"][0].label is None
    assert "test_mismatched" not in splits


def test_shards_and_labels_as_other_programs_write_them(tmp_path):
    rows = [{"sentence": text, "label": label} for text, label in (("a", 1.0), ("b", 0.0))]
    for number, row in enumerate(rows):
        path = tmp_path / f"train-0000{number}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (tmp_path / "validation.jsonl").write_text('{"sentence": "c", "label": "1.0"}\n', encoding="utf-8")
    splits = load(tmp_path, "sst2")
    assert [(example.texts, example.label) for example in splits["train"]] == [(("a",), 1), (("b",), 0)]
    assert splits["validation"][0].label == 1
    for label in (0.5, 2, "nan", True, "1" * 400):
        (tmp_path / "validation.jsonl").write_text(
            json.dumps({"sentence": "c", "label": label}), encoding="utf-8"
        )
        with pytest.raises(UsageError, match=r"the label of sst2 must be 0 or negative, 1 or positive, got "):
            load(tmp_path, "sst2")


def test_the_hub(monkeypatch):
    asked = []
    rows = {"sentence": ["a", "b"], "label": [1, 0], "idx": [0, 1]}
    split = datasets.Dataset.from_dict(rows)

    def load_dataset(*name):
        asked.append(name)
        return datasets.DatasetDict(train=split, validation=split, test=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load(None, "sst2")
    assert asked == [("nyu-mll/glue", "sst2")]
    assert [example.label for example in splits["validation"]] == [1, 0]
    assert [example.label for example in splits["test"]] == [None, None]


def test_an_unreachable_hub_is_a_one_line_error(monkeypatch):
    def load_dataset(*name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UsageError, match=r"^cannot load nyu-mll/glue from the Hub: no route; set data.path to a copy"
    ):
        load(None, "sst2")


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        (
            "train.tsv",
            "entailment\n1\t",
            "entailmnt\n1\t",
            r".*the label of rte must be 0 or entailment, .*, got 'entailmnt' in .*train.tsv:2",
        ),
        ("dev.tsv", "\tlabel", "\tlable", r".*dev.tsv has no column label; its columns are index, .*lable"),
        ("dev.tsv", "\n1\t", "\n1\tone more\t", r".*dev.tsv:3 must have 4 fields \(index, .*, got 5"),
        ("test.tsv", "sentence2", "sentence3", r".*test.tsv has no column sentence2"),
    ],
)
def test_errors_name_the_file_and_the_row(tmp_path, file, before, after, message):
    folder = write_glue(tmp_path, "rte")
    change(folder / file, before, after)
    with pytest.raises(UsageError, match=f"^cannot read data.path: {message}"):
        load(tmp_path, "rte")


def test_broken_rows_can_be_skipped_and_are_counted(tmp_path, caplog):
    folder = write_glue(tmp_path, "rte")
    change(folder / "dev.tsv", "\n1\t", "\n1\tone more\t")
    splits = load(tmp_path, "rte", skip_broken_rows=True)

    assert len(splits["validation"]) == 3
    assert "dev.tsv: skipped 1 rows with a wrong number of fields" in caplog.text


@pytest.mark.parametrize("score", ["5.1", "high", "nan", ""])
def test_a_score_outside_the_scale_is_rejected(tmp_path, score):
    folder = write_glue(tmp_path, "stsb")
    change(folder / "train.tsv", "2.500", score)
    with pytest.raises(
        UsageError, match=rf"data.path: the score must be between 0 and 5, got '{score}' in .*train.tsv:3"
    ):
        load(tmp_path, "stsb")


def test_missing_and_empty_splits_are_rejected(tmp_path):
    folder = write_glue(tmp_path, "cola")
    (folder / "dev.tsv").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^cannot read data.path: .* has no rows for validation"):
        load(tmp_path, "cola")
    (folder / "dev.tsv").unlink()
    with pytest.raises(
        UsageError,
        match=r"^data.path must be a folder with dev.tsv, validation.jsonl or validation.parquet, got ",
    ):
        load(tmp_path, "cola")
    with pytest.raises(UsageError, match=r"^data.path must be a folder of GLUE, .*, which does not exist"):
        load(tmp_path / "elsewhere", "cola")


def test_bytes_that_are_not_utf8_are_rejected(tmp_path):
    folder = write_glue(tmp_path, "cola")
    (folder / "train.tsv").write_bytes(b"gj04\t1\t\tcaf\xe9\n")
    with pytest.raises(UsageError, match=r"^cannot read data.path: .*train.tsv is not UTF-8 at byte 11"):
        load(tmp_path, "cola")


def module(folder, name: str = "rte", **changes) -> GlueDataModule:
    options = {"sequence_length": 64, "batch_size": 2, **changes}
    return GlueDataModule(GlueConfig(name=name, path=str(folder), **options), 1, small_tokenizer())


def test_an_example_is_its_sentences_each_with_an_end(tmp_path):
    write_glue(tmp_path, "rte")
    tokenizer = small_tokenizer()
    data = module(tmp_path)
    ids, label = data.splits["train"][1]
    first, second = (tokenizer(text)["input_ids"] for text in sentences(1))

    assert ids == [*first, tokenizer.eos_token_id, *second, tokenizer.eos_token_id]
    assert label == 1

    # A tokenizer that frames every text, as those of BERT and Llama do, encodes plain text all the same.
    frame = (END_OF_TEXT, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = BertProcessing(frame, frame)
    assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id
    config = GlueConfig(name="rte", path=str(tmp_path), sequence_length=64, batch_size=2)
    assert GlueDataModule(config, 1, tokenizer).splits == data.splits


def test_truncation_takes_from_the_longer_and_is_counted(tmp_path, caplog):
    assert truncate([[1, 2, 3, 4, 5], [6, 7]], 5) == [[1, 2, 3], [6, 7]]
    assert truncate([[1, 2, 3, 4, 5], [6, 7, 8, 9]], 4) == [[1, 2], [6, 7]]
    assert truncate([[1, 2], [3]], 3) == [[1, 2], [3]]

    write_glue(tmp_path, "rte")
    with caplog.at_level(logging.INFO):
        data = module(tmp_path, sequence_length=12)
    lengths = [len(ids) for ids, _ in data.splits["train"]]
    full_lengths = [len(ids) for ids, _ in module(tmp_path).splits["train"]]
    cut = sum(length > 12 for length in full_lengths)
    assert cut > 0
    assert max(lengths) == 12
    assert f"rte train: 6 rows, {cut} of them truncated to 12 tokens" in caplog.text
    assert all(ids[-1] == data.tokenizer.eos_token_id for ids, _ in data.splits["train"])


def test_labels_are_classes_or_values(tmp_path):
    for name, dtype in (("cola", torch.int64), ("stsb", torch.float32)):
        write_glue(tmp_path, name)
        data = module(tmp_path, name)
        assert next(iter(data.train_dataloader()))["labels"].dtype == dtype
