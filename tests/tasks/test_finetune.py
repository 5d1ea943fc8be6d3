"""The finetune task: its files, its console output, and requests rejected before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mom.config import bind
from mom.config.composition import composed
from mom.data.glue import GlueDataModule
from mom.errors import UsageError
from mom.interop import load_classifier
from mom.runs.directory import RunDirectory
from mom.tasks import finetune
from mom.tasks.finetune import num_steps
from mom.training.trainer import num_processes
from tests.helpers.checkpoints import VOCABULARY, request, small_tokenizer, write_run
from tests.helpers.glue_files import write_glue
from tests.helpers.runs import OPTIMIZER
from tests.test_configs import CONF

CHECKPOINT = {
    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
    "monitor": "val/score",
    "mode": "max",
    "filename": "best",
    "enable_version_counter": False,
}


@pytest.fixture
def init(tmp_path) -> Path:
    return write_run(tmp_path / "first", num_rounds=2)


def tuned(
    folder: Path,
    init: Path | str,
    task: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> tuple[dict, Path]:
    groups = {
        "kind": "glue",
        "path": str(folder / "glue"),
        "name": "rte",
        "sequence_length": 32,
        "batch_size": 2,
    }
    whole = request(
        folder,
        {"name": "finetune", "epochs": 2.0, **(task or {})},
        data=groups | data,
        init=str(init),
        optimizer=OPTIMIZER | {"betas": [0.9, 0.95]},
        callbacks={
            "checkpoint": CHECKPOINT,
            "depth": {"_target_": "mom.callbacks.EffectiveDepth"},
            "early_stopping": {
                "_target_": "lightning.pytorch.callbacks.EarlyStopping",
                "monitor": "val/score",
                "mode": "max",
                "patience": 5,
            },
        },
        trainer={"max_steps": 100, "val_check_interval": 1.0, **(trainer or {})},
        logger={"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": ""}},
    )
    config = bind(whole)
    return finetune.run(config, RunDirectory(config.run_dir)), Path(config.run_dir)


def test_shares_of_a_model_are_not_fine_tuned(tmp_path, init):
    with pytest.raises(
        UsageError, match=r"trainer\.strategy must be auto or ddp for task=finetune, got fsdp"
    ):
        tuned(tmp_path, init, trainer={"strategy": "fsdp"})


def test_one_task(tmp_path, init, capsys):
    write_glue(tmp_path / "glue", "rte")
    summary, run = tuned(tmp_path, init)

    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert files >= {"metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "submission/RTE.tsv"}
    assert "tokenizer/tokenizer.json" in files
    assert summary["steps"] == 6
    assert {"val/accuracy", "val/score", "val/loss", "depth/effective", "parameters"} <= set(summary)
    # Two of four validation rows have the majority class (here: the first).
    assert summary["majority/accuracy"] == 50
    assert f"{summary['val/accuracy']:.2f}" in capsys.readouterr().out

    # Predictions of the best checkpoint for all test rows, by name.
    lines = (run / "submission" / "RTE.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["index", "0", "1", "2"]
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}
    best = load_classifier(run / "checkpoints" / "best.ckpt", ("entailment", "not_entailment"))
    assert best.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_mnli_has_two_sets_of_each(tmp_path, init):
    write_glue(tmp_path / "glue", "mnli")
    summary, run = tuned(tmp_path, init, name="mnli", sequence_length=16)

    assert summary["val/score"] == (summary["val/accuracy_matched"] + summary["val/accuracy_mismatched"]) / 2
    assert sorted(path.name for path in (run / "submission").iterdir()) == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    assert {"majority/accuracy_matched", "majority/accuracy_mismatched"} <= set(summary)


def test_several_tasks_and_seeds_make_a_row(tmp_path, init, capsys):
    for name in ("cola", "stsb"):
        write_glue(tmp_path / "glue", name)
    task = {"tasks": ["cola", "stsb"], "seeds": [1, 2], "epochs": 1.0}
    summary, run = tuned(tmp_path, init, task, sequence_length=16)

    scores = {
        name: [
            json.loads((run / name / f"seed_{seed}" / "summary.json").read_text())["val/score"]
            for seed in (1, 2)
        ]
        for name in ("cola", "stsb")
    }
    means = {name: sum(values) / 2 for name, values in scores.items()}
    assert summary["cola/score/mean"] == pytest.approx(means["cola"])
    deviation = abs(scores["stsb"][0] - scores["stsb"][1]) / 2**0.5
    assert summary["stsb/score/deviation"] == pytest.approx(deviation, abs=1e-6)
    assert summary["glue/average"] == pytest.approx(sum(means.values()) / 2)
    # A constant prediction has no correlation with the labels.
    assert summary["glue/majority"] == summary["cola/matthews/majority"] == 0
    assert json.loads((run / "cola" / "seed_2" / "status.json").read_text())["state"] == "succeeded"
    out = capsys.readouterr().out
    assert "pearson/spearman" in out
    assert f"{summary['glue/average']:.1f}" in out
    scored = (run / "stsb" / "seed_1" / "submission" / "STS-B.tsv").read_text().splitlines()[1:]
    assert all(0 <= float(line.split("\t")[1]) <= 5 for line in scored)


def test_the_seed_is_all_that_differs(tmp_path, init):
    write_glue(tmp_path / "glue", "cola")
    (first, _), (second, _) = (tuned(tmp_path, init, name="cola") for _ in range(2))

    assert first == second


def test_a_classifier_can_be_tuned_on_but_not_to_other_labels(tmp_path, init):
    for name in ("rte", "mnli"):
        write_glue(tmp_path / "glue", name)
    _, run = tuned(tmp_path, init)
    best = run / "checkpoints" / "best.ckpt"
    again, _ = tuned(tmp_path, best, {"epochs": 1.0})
    assert again["steps"] == 3

    message = r"^init=.*best.ckpt must be a language model or a classifier with 3 label\(s\), got one with 2"
    with pytest.raises(UsageError, match=message):
        tuned(tmp_path, best, name="mnli")


def test_dropout_of_its_own(tmp_path, init):
    assert load_classifier(init, ("a", "b")).config.dropout == 0
    model = load_classifier(init, (), dropout=0.1)
    assert model.config.dropout == 0.1
    assert model.score.weight.shape == (1, 16)
    body = torch.load(init, weights_only=True)["state_dict"]
    assert all(
        torch.equal(weight, body[f"model.model.{name}"]) for name, weight in model.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"tasks": ["rte", "sst2"]}, {}, r"data.path must be a folder with train.tsv, .*, got .*glue"),
        ({}, {"sequence_length": 65}, "data.sequence_length must be at most 64, .*, got 65"),
        ({}, {"name": "rtee"}, "data.name must be one of .*, got rtee; did you mean rte"),
        ({"tasks": []}, {}, r"task.tasks must be null or a list of distinct items, got \[\]"),
        (
            {"tasks": ["rte", "coal"]},
            {},
            r"task.tasks must be null or a list of items, each one of cola, .*, got \[rte, coal\]",
        ),
        ({"seeds": [1, 1]}, {}, r"task.seeds must be null or a list of distinct items, got \[1, 1\]"),
        ({}, {"kind": "language_modeling", "corpus": "text"}, "unknown option data.name"),
    ],
)
def test_wrong_requests_are_rejected_before_training(tmp_path, init, monkeypatch, task, data, message):
    write_glue(tmp_path / "glue", "rte")
    monkeypatch.setattr(finetune, "fit_module", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UsageError, match=f"^{message}"):
        tuned(tmp_path, init, task, **data)


def test_text_is_not_what_finetuning_takes():
    with pytest.raises(
        UsageError,
        match=r"^data.kind must be glue, classification, or xsum for task=finetune, got language_modeling, which ",
    ):
        bind(composed(CONF, ["task=finetune", "init=x", "data=python_stdlib"]))


def test_a_batch_of_another_vocabulary_is_rejected(tmp_path, init):
    write_glue(tmp_path / "glue", "rte")
    small = write_run(tmp_path / "small", vocab_size=VOCABULARY - 1)
    with pytest.raises(UsageError, match=r"^data.tokenizer must be .* at most 299 tokens, got .* with 300"):
        tuned(tmp_path, small)


def test_the_task_brings_its_own_optimizer_and_callbacks():
    config = bind(composed(CONF, ["task=finetune", "init=x"]))
    assert config.data.kind == "glue"
    assert config.optimizer.lr == 5e-5
    assert config.callbacks["checkpoint"].arguments["monitor"] == "val/score"
    kept = bind(composed(CONF, ["task=finetune", "init=x", "callbacks=none", "optimizer=adamw"]))
    assert kept.callbacks == {}
    assert kept.optimizer.lr == 2e-3


def test_steps_of_some_epochs():
    def steps(epochs: float, **trainer: Any) -> int:
        config = bind({"run_dir": "x", "trainer": trainer})
        return num_steps(config, 10, epochs)

    assert [steps(3.0), steps(0.25), steps(0.01)] == [30, 3, 1]
    # An epoch of 10 batches has steps of 4, 4, and 2.
    assert steps(2.0, accumulate_grad_batches=4) == 6
    assert steps(2.5, accumulate_grad_batches=4) == 8
    assert steps(3.0, accumulate_grad_batches=16) == 3
    assert steps(0.7, accumulate_grad_batches=7) == 1
    assert steps(1.0, limit_train_batches=4) == 4
    assert steps(1.0, limit_train_batches=0.5) == 5


def test_an_epoch_on_several_processes_has_fewer_steps(tmp_path):
    write_glue(tmp_path / "glue", "rte")
    data = {"kind": "glue", "name": "rte", "path": str(tmp_path / "glue"), "batch_size": 2}
    config = bind(request(tmp_path, {"name": "finetune"}, init="x", data=data))
    rows = GlueDataModule(config.data, 0, small_tokenizer())
    trainers = [{}, {"devices": 2, "strategy": "ddp"}, {"devices": 2, "num_nodes": 2, "strategy": "ddp"}]
    counts = [
        num_processes(bind(request(tmp_path, {"name": "finetune"}, init="x", data=data, trainer=trainer)))
        for trainer in trainers
    ]
    assert counts == [1, 2, 4]
    assert [rows.num_train_batches(count) for count in counts[:2]] == [3, 1]
    with pytest.raises(
        UsageError, match=r"^data.batch_size=2 on 4 processes needs 8 training rows, but the data has 6"
    ):
        rows.num_train_batches(4)
