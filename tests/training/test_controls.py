"""Controls in training: exact match is measured and logged, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mom.config import RunConfig, bind
from mom.config.composition import composed
from mom.data.controls.batches import ControlDataModule
from mom.data.controls.facts import Facts
from mom.data.controls.rules import Rules
from mom.errors import UsageError
from mom.interop import load_model
from mom.metrics.names import SPECIALIZATION
from mom.runs.directory import RunDirectory
from mom.tasks import evaluate, pretrain
from mom.training.controls import ControlModule

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = (
    "experiment=control/facts",
    "arm=mom_without_skip",
    "data.entities=6",
    "data.relations=3",
    "data.never_composed_fraction=0.4",
    "data.batch_size=8",
    "model.d_model=16",
    "model.d_ffn=16",
    "optimizer.warmup_steps=1",
    "trainer.val_check_interval=6",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "callbacks.figures=null",
)


def request(folder: Path, *overrides: str) -> RunConfig:
    return bind(composed(CONF, [*SMALL, f"run_dir={folder}", *overrides]))


def train(folder: Path, *overrides: str) -> dict[str, float]:
    config = request(folder, *overrides)
    return pretrain.run(config, RunDirectory(config.run_dir))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("control") / "run"
    return folder, train(folder, "trainer.max_steps=12")


def test_the_summary_has_exact_match_by_bucket_and_chance(run: tuple[Path, dict[str, float]]) -> None:
    folder, summary = run
    control = Facts(entities=6, relations=3, never_composed_fraction=0.4, batch_size=8)
    names = {f"val/exact_match/{bucket}" for bucket in control.buckets}
    model = load_model(folder / "checkpoints" / "last.ckpt").eval()
    data = ControlDataModule(control, seed=0)
    data.setup()
    examples = data.validation
    with torch.no_grad():
        answers = model(input_ids=examples.input_ids).logits[:, -2].argmax(-1)
    right = (answers == examples.input_ids[:, -1]).float()

    assert names <= set(summary)
    assert summary["val/exact_match"] == pytest.approx(float(right.mean()))
    held_out = examples.bucket == control.buckets.index("hop2_held_out")
    assert summary["val/exact_match/hop2_held_out"] == pytest.approx(float(right[held_out].mean()))
    assert summary["chance/exact_match"] == 1 / 6
    with (folder / "metrics.csv").open(newline="") as file:
        assert names | {"val/exact_match", "val/loss"} <= set(next(csv.reader(file)))
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert not (folder / "tokenizer").exists()
    json.dumps(summary)


def test_evaluation_gives_the_same_numbers(run: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, summary = run
    init = folder / "checkpoints" / "last.ckpt"
    line = ["task=evaluate", f"init={init}", "data=control/facts", *SMALL[2:6], "trainer=cpu"]
    config = bind(composed(CONF, [*line, f"run_dir={tmp_path / 'evaluation'}"]))

    found = evaluate.run(config, RunDirectory(config.run_dir))
    for name, value in summary.items():
        if name.startswith(("val/exact_match", "chance/", "val/loss")):
            assert found[name] == pytest.approx(value)
    config = bind(composed(CONF, [*line, f"run_dir={tmp_path / 'larger'}", "data.entities=20"]))
    with pytest.raises(
        UsageError, match=r"must be a model with at least 24 tokens for data=control/facts, got 10$"
    ):
        evaluate.run(config, RunDirectory(config.run_dir))


@pytest.mark.parametrize("steps", [7, 8])  # within an epoch of four steps, and at its end
def test_a_resumed_run_equals_an_uninterrupted_one(
    run: tuple[Path, dict[str, float]], tmp_path: Path, steps: int
) -> None:
    folder, _ = run
    train(tmp_path / "run", f"trainer.max_steps={steps}")
    train(tmp_path / "run", "trainer.max_steps=12", "resume=auto")
    weights = [
        load_model(path / "checkpoints" / "last.ckpt").state_dict() for path in (folder, tmp_path / "run")
    ]

    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_another_control_cannot_be_resumed(run: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    ckpt = run[0] / "checkpoints" / "last.ckpt"
    with pytest.raises(
        UsageError, match=r"^cannot resume with data\.name=facts: the checkpoint was trained on "
    ):
        train(tmp_path / "run", f"ckpt={ckpt}", "data.seed=7", "trainer.max_steps=13")


SMALL_RULES = (
    "experiment=control/rules",
    "data.symbols=8",
    "data.steps=2",
    "data.training_examples=64",
    "data.validation_examples=30",
    "trainer.max_steps=6",
)


def train_on_rules(folder: Path, *overrides: str) -> dict[str, float]:
    shared = SMALL[SMALL.index("data.batch_size=8") :]
    config = bind(composed(CONF, [*SMALL_RULES, *shared, *overrides, f"run_dir={folder}"]))
    return pretrain.run(config, RunDirectory(config.run_dir))


def test_the_oracle_runs_the_right_modules(tmp_path: Path) -> None:
    figures = "callbacks.figures={_target_: mom.callbacks.RoutingFigures, loss_batches: 1}"
    summary = train_on_rules(tmp_path / "oracle", "arm=oracle", figures)
    control = Rules(symbols=8, steps=2, training_examples=64, validation_examples=30)
    model = load_model(tmp_path / "oracle" / "checkpoints" / "last.ckpt").eval()
    examples = control.validation()
    assert examples.choices is not None
    choices = {"ffn": examples.choices["ffn"].clamp(min=0)}
    with torch.no_grad():
        answers = model(input_ids=examples.input_ids, choices=choices).logits[:, -2].argmax(-1)

    assert summary["val/exact_match"] == pytest.approx(
        float((answers == examples.labels[:, -1]).float().mean())
    )
    measures = {name: summary[f"routing/ffn/{name}"] for name in SPECIALIZATION}
    assert measures["alignment"] == 1
    assert measures["inverse_mutual_information"] == pytest.approx(0, abs=0.1)
    assert "routing/attention/alignment" not in summary


def test_modules_in_order_are_aligned_with_no_rule(tmp_path: Path) -> None:
    summary = train_on_rules(tmp_path / "in_order", "arm=in_order")

    assert summary["routing/ffn/alignment"] == 1 / 4
    assert summary["routing/ffn/collapse_average"] == 1
    assert summary["routing/ffn/inverse_mutual_information"] == 1


def test_a_plain_transformer_has_no_alignment(tmp_path: Path) -> None:
    summary = train_on_rules(tmp_path / "plain", "arm=plain")

    assert not [name for name in summary if "alignment" in name]


def test_figures_use_the_logits_of_a_controls_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[bool] = []
    run_model = ControlModule.run_model

    def running(module: ControlModule, *batch: Any, **options: Any) -> Any:
        runs.append(module.training)
        return run_model(module, *batch, **options)

    monkeypatch.setattr(ControlModule, "run_model", running)
    figures = "callbacks.figures={_target_: mom.callbacks.RoutingFigures, dpi: 30}"
    limits = ("trainer.max_steps=1", "trainer.val_check_interval=1", "trainer.limit_val_batches=2")
    train(tmp_path / "run", "data.batch_size=4", *limits, "trainer.num_sanity_val_steps=0", figures)

    assert runs == [True, False, False]
