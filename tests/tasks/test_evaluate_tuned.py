"""Evaluation of a fine-tuned checkpoint gives the results at the end of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mom.config import bind
from mom.errors import UsageError
from mom.runs.directory import RunDirectory
from mom.tasks import evaluate
from tests.distributed.scenarios import is_timed
from tests.helpers.checkpoints import request, write_run
from tests.helpers.glue_files import write_glue
from tests.helpers.xsum_files import write_xsum
from tests.tasks.test_finetune import tuned as tuned_on_glue
from tests.tasks.test_finetune_xsum import tuned as tuned_on_xsum

OF_TRAINING = {"steps"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder / "first", num_rounds=2)
    for name in ("rte", "mnli", "cola", "stsb"):
        write_glue(folder / "glue", name)
    write_xsum(folder / "xsum")
    return folder


def evaluated(folder: Path, init: Path, task: dict[str, Any] | None = None, **data: Any) -> tuple[dict, Path]:
    kind = data.get("kind", "glue")
    groups = {"kind": kind, "path": str(folder / kind), "batch_size": 2}
    whole = request(
        folder,
        {"name": "evaluate", **(task or {})},
        data=groups | data,
        init=str(init),
        callbacks={"depth": {"_target_": "mom.callbacks.EffectiveDepth"}},
        logger={"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": ""}},
    )
    config = bind(whole)
    return evaluate.run(config, RunDirectory(config.run_dir)), Path(config.run_dir)


def first(folder: Path) -> Path:
    return folder / "first" / "checkpoints" / "last.ckpt"


def assert_same_measures(found: dict[str, Any], trained: dict[str, Any]) -> None:
    expected = {
        name: value for name, value in trained.items() if name.startswith(("val/", "test/", "lead/", "maj"))
    }
    assert len(expected) > 3
    assert {name: found[name] for name in expected} == expected
    assert not any(is_timed(name) or name in OF_TRAINING for name in found)


@pytest.mark.parametrize("name", ["rte", "mnli", "stsb"])
def test_glue_is_measured_as_after_its_training(folder, capsys, name):
    trained, run = tuned_on_glue(folder, first(folder), {"epochs": 1.0}, name=name)
    found, where = evaluated(folder, run / "checkpoints" / "best.ckpt", name=name, sequence_length=32)
    assert found["depth/effective"] == trained["depth/effective"]
    assert_same_measures(found, trained)
    for file in (run / "submission").iterdir():
        assert (where / "submission" / file.name).read_bytes() == file.read_bytes()
    assert ("mean label" if name == "stsb" else "majority class") in capsys.readouterr().out
    assert (where / "metrics.csv").is_file()
    assert not (where / "checkpoints").exists()


def test_xsum_is_measured_as_after_its_training(folder, capsys):
    options = {"sequence_length": 48, "separator": "|", "max_summary_tokens": 6, "limit_summaries": 3}
    trained, run = tuned_on_xsum(folder, first(folder), {"epochs": 1.0}, limit_summaries=3)
    found, where = evaluated(folder, run / "checkpoints" / "best.ckpt", kind="xsum", **options)
    assert_same_measures(found, trained)
    for file in (run / "summaries").iterdir():
        assert (where / "summaries" / file.name).read_bytes() == file.read_bytes()
    assert "first sentence" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (
            {},
            {"name": "rte"},
            r"init=.*last.ckpt must be a classifier with 2 label\(s\), not a language model; .*task=fine",
        ),
        ({"split": "train"}, {"name": "rte"}, "task.split must be validation for data=glue, got train"),
        ({"stride": 4}, {"kind": "xsum"}, "task.stride cannot be combined with data=xsum"),
        (
            {},
            {"kind": "xsum", "sequence_length": 65, "max_summary_tokens": 6},
            "data.sequence_length must be at most 64, ",
        ),
    ],
)
def test_an_invalid_request_is_rejected(folder, task, data, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        evaluated(folder, first(folder), task, **data)


def test_a_classifier_of_other_labels_is_rejected(folder):
    _, run = tuned_on_glue(folder, first(folder), {"epochs": 0.1}, name="rte")
    best = run / "checkpoints" / "best.ckpt"
    for name in ("cola", "mnli", "stsb"):
        message = rf"^init=.* must be a classifier of .*, fine-tuned on {name}, got one of entailment, not_entailment"
        with pytest.raises(UsageError, match=message):
            evaluated(folder, best, name=name)
    with pytest.raises(UsageError, match=r"^init=.*best.ckpt must be a language model, not a classifier"):
        evaluated(folder, best, kind="xsum", sequence_length=48, max_summary_tokens=6)
