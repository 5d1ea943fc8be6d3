"""The analyze task: its files agree with each other and with task=evaluate."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mom.analysis.traces import Traces
from mom.config import bind
from mom.cost.estimate import flops_per_token
from mom.errors import UsageError
from mom.interop import load_model
from mom.metrics.choice_value import REPLACEMENTS
from mom.runs.directory import RunDirectory
from mom.tasks import analyze, evaluate
from tests.helpers.checkpoints import request, write_run
from tests.helpers.models import small_model
from tests.helpers.texts import some_texts, write_jsonl

CHOICES = ("choice_value", "regret", "paths", "dependence", "difficulty", "changes")
"""Tables about the routers' choices."""


SMALL = {"ablation_tokens": 64, "value_tokens": 64, "regret_budget": 3000, "regret_paths": 9}
"""Options for little data."""


def analyzed(
    folder: Path, source: dict[str, Any], task: dict[str, Any] | None = None, **data: Any
) -> tuple[Path, dict]:
    """Run the task on some texts; return its folder and summary."""
    config = bind(a_request(folder, source, {"name": "analyze", **SMALL, **(task or {})}, **data))
    return Path(config.run_dir), analyze.run(config, RunDirectory(config.run_dir))


def a_request(folder: Path, source: dict[str, Any], task: dict[str, Any], **data: Any) -> dict[str, Any]:
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
    return request(folder, task, data=groups | data, **source)


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_is_written_and_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_run(tmp_path / "first")
    folder, summary = analyzed(tmp_path, {"ckpt": str(checkpoint)})
    traces, model = Traces(folder), load_model(checkpoint)
    tokens = traces.tokens().to_pydict()
    losses = [loss for loss in tokens["loss"] if loss is not None]

    assert traces.header.source == str(checkpoint)
    assert summary["data/tokens"] == len(tokens["token"]) > 200
    assert summary["val/loss"] == pytest.approx(sum(losses) / len(losses))
    assert summary["depth/weighted"] == pytest.approx(sum(tokens["weighted_depth"]) / len(tokens["token"]))
    assert summary["parameters"] == model.num_parameters()
    use = rows_of(folder, "use")
    assert len(use) == 4 * (3 + 1) * 2
    assert (
        sum(int(row["places"]) for row in use)
        == len(traces.routing(["token"]))
        == len(tokens["token"]) * 4 * 2 * 2
    )
    per_step = [
        sum(int(row["places"]) for row in use if row["kind"] == kind and row["is_skip"] == "False")
        / (4 * len(tokens["token"]))
        for kind in ("attention", "ffn")
    ]
    assert summary["flops/forward_actual"] == pytest.approx(
        32 * flops_per_token(model.config, 32, dict(zip(("attention", "ffn"), per_step, strict=True))).total
    )
    assert summary["flops/forward_actual"] < summary["flops/forward"]
    removal = rows_of(folder, "removal")
    assert [row["how"] for row in removal] == ["whole"] + ["alone"] * 6 + ["greedily"] * 4
    assert float(removal[0]["loss"]) == pytest.approx(summary["removal/loss"])
    modules = rows_of(folder, "modules")
    assert len(modules) == 2 * 4
    alone = {(row["kind"], row["choice"]): float(row["rise"]) for row in removal if row["how"] == "alone"}
    for row in modules:
        assert (
            row["loss_rise"] == ""
            if row["is_skip"] == "True"
            else float(row["loss_rise"]) == pytest.approx(alone[row["kind"], row["choice"]])
        )
    assert sum(row["droppable"] == "True" for row in modules) == summary["removal/droppable"]
    assert len(rows_of(folder, "similarity")) == 2 * 3
    assert {row["choice"] for row in rows_of(folder, "tokens_of_modules")} <= {"0", "1", "2", "3"}
    tables = json.loads((folder / "tables.json").read_text(encoding="utf-8"))
    assert set(tables) == {"use", "modules", "tokens_of_modules", "similarity", "removal", *CHOICES}
    assert {row["replacement"] for row in tables["choice_value"]} == set(REPLACEMENTS)
    assert [row["kind"] for row in tables["paths"]] == ["attention", "ffn", "all"]
    assert all(row["swaps"] % 4 == 0 < row["swaps"] for row in tables["regret"] if row["round"] is None)
    assert summary["regret/ffn/regret"] >= 0
    value = next(row for row in tables["choice_value"] if (row["kind"], row["round"]) == ("all", None))
    assert summary["choice_value/all/permuted"] == value["increase"]
    assert 0 <= summary["routing/ffn/round_changes"] <= 1
    assert summary["dependence/ffn/token_id/information"] > 0
    assert [row["by"] for row in tables["difficulty"]] == ["loss"] * 10
    page = (folder / "report.html").read_text(encoding="utf-8")
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {
        "module_use",
        "module_flow",
        "depth_distribution",
        "depth_by_frequency",
        "depth_by_loss",
        "similarity_0",
        "removal",
        "choice_value",
        "regret",
        "dependence",
    }
    assert page.count("<img ") == len(figures)
    printed = capsys.readouterr().out
    assert f"{summary['val/loss']:.4f}" in printed and "report.html" in printed and str(folder) in printed
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_corpus_of_a_mixture_is_analyzed_by_its_name(tmp_path: Path) -> None:
    source = {"init": str(write_run(tmp_path / "first"))}
    parts = {
        name: {
            "corpus": "text",
            "path": str(write_jsonl(tmp_path / f"{name}.jsonl", some_texts(9, words=20, seed=seed))),
        }
        for seed, name in enumerate(("library", "notes"))
    }
    mixture = {"corpus": "mixture", "path": None, "mixture": parts}
    options = {"ablation": "none", "similarity_inputs": 0, "value_tokens": 0, "regret_budget": 0}
    for given, name in (({}, "library"), ({"corpus": "notes"}, "notes")):
        folder, summary = analyzed(tmp_path, source, options | given, **mixture)
        _, alone = analyzed(tmp_path, source, options, path=parts[name]["path"])
        assert summary["val/loss"] == alone["val/loss"]
        assert summary["data/fingerprint"] == alone["data/fingerprint"]
        assert Traces(folder).header.text == f"{name}, {parts[name]['path']}, validation"

    with pytest.raises(
        UsageError, match=r"^task.corpus must be library or notes, got note; did you mean notes\?"
    ):
        analyzed(tmp_path, source, {"corpus": "note"}, **mixture)
    with pytest.raises(UsageError, match=r"^task.corpus requires data=mixture, got data=text"):
        analyzed(tmp_path, source, {"corpus": "notes"})


def test_the_loss_is_that_of_evaluate(tmp_path: Path) -> None:
    checkpoint = str(write_run(tmp_path / "first"))
    config = bind(a_request(tmp_path, {"init": checkpoint}, {"name": "evaluate"}))
    evaluated = evaluate.run(config, RunDirectory(config.run_dir))
    options = {"ablation": "none", "similarity_inputs": 0, "value_tokens": 0}
    whole, summary = analyzed(tmp_path, {"init": checkpoint}, options)
    # task=evaluate skips tokens that do not fill a window.
    windows = evaluated["data/tokens"] // 31
    _, same = analyzed(tmp_path, {"init": checkpoint}, {**options, "num_tokens": 32 * windows})

    assert same["val/loss"] == pytest.approx(evaluated["val/loss"], rel=1e-5)
    assert same["data/fingerprint"] == evaluated["data/fingerprint"]
    assert summary["data/tokens"] > same["data/tokens"] == 32 * windows
    absent = {"removal.csv", "similarity.csv", "choice_value.csv", "regret.csv", "paths.csv"}
    assert not absent & {path.name for path in whole.iterdir()}


def test_some_stages_of_all_documents(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "first", num_stages=2, num_ffn_modules=2, top_k=1)
    task = {"stages": [1], "split": "all", "num_tokens": 100, "ablation": "alone", "report_tokens": 40}
    folder, summary = analyzed(tmp_path, {"ckpt": str(checkpoint)}, task)
    traces = Traces(folder)

    assert set(traces.routing(["stage"])["stage"].to_pylist()) == {1}
    assert traces.num_tokens == summary["data/tokens"] == 100
    # Without the other stage's counts there are no totals.
    assert "flops/forward_actual" not in summary and "removal/droppable" not in summary
    assert {row["how"] for row in rows_of(folder, "removal")} == {"whole", "alone"}
    assert (folder / "figures" / "similarity_0.png").is_file() and (
        folder / "figures" / "similarity_1.png"
    ).is_file()
    assert "The first 40 of 100 recorded tokens." in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "task", "data", "message"),
    [
        ({"num_stages": 0}, {}, {}, "ckpt=.*last.ckpt must be a model with stages, not a plain transformer"),
        ({}, {}, {"sequence_length": 65}, "data.sequence_length must be at most 64, .*, got 65"),
        ({}, {"stages": [0, 1]}, {}, r"task.stages must be below 1, .*, got \[0, 1\]"),
        ({}, {"stages": []}, {}, r"task.stages must be null or a list of distinct items, got \[\]"),
        ({}, {"num_tokens": 1}, {}, "task.num_tokens must be at least 2, got 1"),
        (
            {},
            {"split": "train"},
            {"validation_fraction": 0.999},
            "task.split=train needs at least two tokens",
        ),
    ],
)
def test_an_invalid_request_is_rejected(
    tmp_path: Path, changes: dict[str, Any], task: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    model = small_model(vocab_size=300, max_positions=64, **changes)
    checkpoint = write_run(tmp_path / "first", model)
    with pytest.raises(UsageError, match=f"^{message}"):
        analyzed(tmp_path, {"ckpt": str(checkpoint)}, task, **data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "task=analyze requires init"),
        ({"init": "a.ckpt", "ckpt": "b.ckpt"}, "init cannot be combined with ckpt"),
        ({"ckpt": "missing.ckpt"}, "ckpt must be .*, got missing.ckpt: no such file or folder"),
        ({"init": "a.ckpt", "resume": "auto"}, "task=analyze does not support resume=auto"),
    ],
)
def test_the_weights_must_be_named(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        analyzed(tmp_path, source)


FACTS = {"kind": "control", "name": "facts", "entities": 6, "relations": 3, "batch_size": 16}


def test_a_control_is_analyzed_by_bucket_and_answer(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path / "first", top_k=1)
    task = {"name": "analyze", **SMALL, "ablation": "alone"}
    config = bind(request(tmp_path, task, data=FACTS, ckpt=str(checkpoint)))
    summary = analyze.run(config, RunDirectory(config.run_dir))
    folder = Path(config.run_dir)
    traces, control = Traces(folder), config.data
    examples = control.validation()

    tokens = traces.tokens().to_pandas()
    assert len(tokens) == examples.input_ids.numel() == summary["data/tokens"]
    assert tokens["loss"].notna().sum() == len(examples.input_ids)  # only answers are predicted
    assert set(tokens[tokens["loss"].notna()]["position"]) == {2}
    with torch.no_grad():
        loss = load_model(checkpoint).eval()(input_ids=examples.input_ids, labels=examples.labels).lm_loss
    assert summary["val/loss"] == pytest.approx(float(loss), rel=1e-5)
    difficulty = rows_of(folder, "difficulty")
    found = {row["group"] for row in difficulty if row["by"] == "bucket, predicted"}
    assert found == {name for number, name in enumerate(control.buckets) if (examples.bucket == number).any()}
    counts = {row["group"]: int(row["tokens"]) for row in difficulty if row["by"] == "bucket, predicted"}
    assert counts["hop1"] == int((examples.bucket == 0).sum())
    attributes = {row["attribute"] for row in rows_of(folder, "dependence")}
    assert attributes == {"token_id", "previous_token_id", "position", "round", "bucket", "answer"}
    assert rows_of(folder, "choice_value") and rows_of(folder, "regret")
    assert (folder / "report.html").exists()


def test_an_oracle_is_analyzed_with_its_choices_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"router": "oracle", "top_k": 1, "num_attention_modules": 1, "skip": False}
    checkpoint = write_run(tmp_path / "first", **options)
    task = {"name": "analyze", **SMALL}
    config = bind(request(tmp_path, task, data=FACTS, ckpt=str(checkpoint)))
    with pytest.raises(UsageError, match="router=oracle requires data with known choices, got control/facts"):
        analyze.run(config, RunDirectory(config.run_dir))

    examples = config.data.validation()
    right = {"ffn": examples.bucket[:, None].expand_as(examples.input_ids) % 3}
    monkeypatch.setattr(type(config.data), "validation", lambda _: examples._replace(choices=right))
    summary = analyze.run(config, RunDirectory(config.run_dir))
    assert summary["dependence/ffn/right_ffn/share"] == pytest.approx(1)
    assert summary["dependence/ffn/bucket/share"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ({"split": "all"}, {}, "task.split must be validation or train with data=control/facts, got all"),
        ({}, {"entities": 400}, "must be a model with at least 404 tokens for data=control/facts, got 300"),
    ],
)
def test_controls_that_cannot_be_analyzed(tmp_path: Path, task: dict, data: dict, message: str) -> None:
    checkpoint = write_run(tmp_path / "first")
    config = bind(request(tmp_path, {"name": "analyze", **task}, data=FACTS | data, ckpt=str(checkpoint)))
    with pytest.raises(UsageError, match=message):
        analyze.run(config, RunDirectory(config.run_dir))
