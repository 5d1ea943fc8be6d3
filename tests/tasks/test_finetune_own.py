"""Fine-tuning on your own labeled texts, and on your own inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mom.config import bind
from mom.errors import UsageError
from mom.interop import load_classifier
from mom.runs.directory import RunDirectory
from mom.tasks import evaluate, finetune
from tests.data.test_classification import write
from tests.helpers.checkpoints import request, write_run
from tests.helpers.runs import OPTIMIZER
from tests.tasks.test_finetune import CHECKPOINT


def run(folder: Path, task: dict[str, Any], data: dict[str, Any], init: Path) -> tuple[dict[str, Any], Path]:
    groups = {
        "data": {"sequence_length": 32, "batch_size": 4, **data},
        "optimizer": OPTIMIZER | {"betas": [0.9, 0.95], "lr": 3e-3},
        "callbacks": {"checkpoint": CHECKPOINT},
        "trainer": {"max_steps": 60, "val_check_interval": 1.0},
    }
    config = bind(request(folder, task, init=str(init), **groups))
    config.check_buildable()
    module = finetune if task["name"] == "finetune" else evaluate
    return module.run(config, RunDirectory(config.run_dir)), Path(config.run_dir)


def test_labeled_texts(tmp_path):
    rows = [
        {"text": f"{'module' if n % 2 else 'token'} {n}", "label": "odd" if n % 2 else "even"}
        for n in range(40)
    ]
    for split, part in (
        ("train", rows[:28]),
        ("validation", rows[28:]),
        ("test", [{"text": "module 7"}] * 3),
    ):
        write(tmp_path / "mine" / f"{split}.jsonl", part)
    data = {"kind": "classification", "path": str(tmp_path / "mine"), "metric": "f1"}
    summary, folder = run(tmp_path, {"name": "finetune", "epochs": 8.0}, data, write_run(tmp_path / "first"))
    assert summary["val/f1"] == summary["val/accuracy"] == 100
    assert summary["majority/accuracy"] == 50
    best = folder / "checkpoints" / "best.ckpt"
    assert load_classifier(best, ("even", "odd")).config.id2label == {0: "even", 1: "odd"}
    lines = (folder / "submission" / "mine.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", "0\todd", "1\todd", "2\todd"]
    measured, _ = run(tmp_path, {"name": "evaluate"}, data, best)
    assert measured["val/f1"] == summary["val/f1"]
    assert measured["val/loss"] == pytest.approx(summary["val/loss"])
    with pytest.raises(UsageError, match=r"^task.seeds cannot be combined with data=classification"):
        run(tmp_path, {"name": "finetune", "seeds": [1, 2]}, data, best)


def test_labels_that_are_numbers_are_predicted(tmp_path):
    rows = [{"text": f"{'module' if n % 2 else 'token'} {n}", "label": -1.5 + n % 2} for n in range(40)]
    for split, part in (("train", rows[:28]), ("validation", rows[28:]), ("test", [{"text": "module 7"}])):
        write(tmp_path / "mine" / f"{split}.jsonl", part)
    data = {"kind": "classification", "path": str(tmp_path / "mine"), "metric": "pearson"}
    summary, folder = run(tmp_path, {"name": "finetune", "epochs": 8.0}, data, write_run(tmp_path / "first"))
    assert summary["val/pearson"] > 80 and "val/spearman" in summary
    lines = (folder / "submission" / "mine.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and float(lines[1].split("\t")[1]) < 0


def test_inputs_and_outputs(tmp_path):
    path = tmp_path / "pairs.csv"
    lines = [f"question {number},answer {number % 3}" for number in range(24)]
    path.write_text("\n".join(["asked,told", *lines]) + "\n", encoding="utf-8")
    data = {
        "kind": "xsum",
        "path": str(path),
        "document_column": "asked",
        "summary_column": "told",
        "separator": "\n",
        "max_summary_tokens": 6,
        "validation_fraction": 0.2,
    }
    summary, folder = run(tmp_path, {"name": "finetune", "epochs": 2.0}, data, write_run(tmp_path / "first"))
    assert {"val/loss", "val/rouge1", "val/rougeL"} <= summary.keys()
    written = [
        json.loads(line) for line in (folder / "summaries" / "validation.jsonl").read_text().splitlines()
    ]
    assert written and all(row["reference"].startswith("answer") for row in written)
    with pytest.raises(UsageError, match=r"^data=text_to_text requires data.path"):
        run(tmp_path, {"name": "finetune"}, data | {"path": None}, tmp_path)
