"""Names of the metrics: logged by all loggers, in the dashboard, and explained in docs/metrics.md."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mom.data.language_modeling import LanguageModelingDataModule
from mom.metrics.names import FIGURES, SAMPLES, SECTIONS, SUMMARY, TRAINING
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.fit import fit_phase
from tests.helpers.runs import tiny_request
from tests.helpers.wandb_files import read_records

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
LOGGERS = {
    "csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": ""},
    "tensorboard": {
        "_target_": "lightning.pytorch.loggers.TensorBoardLogger",
        "name": "tb",
        "version": "",
        "default_hp_metric": False,
    },
    "wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "mom", "offline": True},
}
CALLBACKS = {
    "figures": {"_target_": "mom.callbacks.RoutingFigures", "dpi": 30},
    "samples": {"_target_": "mom.callbacks.GeneratedSamples", "prompts": ["module", ""], "max_new_tokens": 3},
    "learning_rate_monitor": {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"},
}


def names(node: Any) -> set[str]:
    """Return all names in the dashboard's sections."""
    return {name for section in node.values() for name in section}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run that logs all metrics with all loggers."""
    folder = tmp_path_factory.mktemp("logged")
    base = tiny_request(folder)
    config = tiny_request(
        folder,
        logger=LOGGERS,
        callbacks={
            name: {"_target_": callback.target, **callback.arguments}
            for name, callback in base.callbacks.items()
        }
        | CALLBACKS,
        router={"skip_bias": 0.0},
        model={"skip_rule": "first"},  # so that depth differs between tokens, and its figures are drawn
        data={"batch_size": 32},
        trainer={"max_steps": 4, "val_check_interval": 2, "accumulate_grad_batches": 2},
    )
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    torch.manual_seed(0)
    model = MoMForCausalLM(config.model_config(data.vocab_size))
    directory = RunDirectory(folder / "run")
    directory.write_summary(fit_phase(config, model, data, directory, phase="mom", max_steps=4))
    return folder / "run"


@pytest.fixture(scope="module")
def logged(folder) -> set[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return set(next(csv.reader(file))) - {"step", "epoch"}


def documented() -> set[str]:
    """Return the names in code spans of the page, with pool names filled in."""
    found = set()
    for span in re.findall(r"`([^`\s]+/[^`\s]+)`", PAGE):
        found |= {span.replace("{pool}", pool) for pool in ("attention", "ffn")}
    return found


def test_every_metric_is_in_the_dashboard_and_on_the_page(logged):
    assert logged <= names(SECTIONS)
    # All but the metrics that only controls and losses that are off by default add.
    only_controls = {"val/exact_match", *SECTIONS["val/specialization"]}
    assert names(SECTIONS) - logged <= {
        "train/depth_loss",
        "train/capacity_loss",
        *only_controls,
    }
    plain = {name if name in documented() else name.removeprefix("val/") for name in names(SECTIONS)}
    assert plain <= documented()
    assert set(FIGURES) <= documented()


def test_the_page_has_no_name_that_nothing_logs():
    prefixes = tuple(f"{section}/" for section in TRAINING)
    mentioned = {name for name in documented() if name.startswith(prefixes) and not name.endswith("…")}
    assert mentioned <= names(SECTIONS) | set(SUMMARY)


def test_the_summary_has_the_constant_metrics(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert all(summary[name] > 0 for name in SUMMARY)
    assert set(SUMMARY) <= documented()


def test_tensorboard_has_the_same_names(folder, logged):
    tags = EventAccumulator(str(folder / "tb")).Reload().Tags()
    assert set(tags["scalars"]) - {"epoch"} == logged
    assert set(tags["images"]) == set(FIGURES)
    assert any(tag.startswith(SAMPLES) for tag in tags["tensors"])


def test_wandb_has_the_same_names_the_figures_the_samples_and_where_the_run_comes_from(folder, logged):
    records = read_records(folder)
    keys = {
        item.nested_key[0] if item.nested_key else item.key
        for record in records
        for item in record.history.item
        if record.WhichOneof("record_type") == "history"
    }
    assert logged | set(FIGURES) | {SAMPLES, "trainer/global_step"} <= keys
    config: dict[str, Any] = {}
    for record in records:
        for update in (*record.config.update, *record.run.config.update):
            path = update.nested_key or [update.key]
            node = config
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = json.loads(update.value_json)
    assert config["model"]["num_rounds"] == 3 and config["seed"] == 1
    known = config["provenance"]
    assert re.fullmatch("[0-9a-f]{64}", known["data"]["fingerprint"])
    assert known["environment"]["torch"] == torch.__version__
    assert known["code"]["commit"] is None or re.fullmatch("[0-9a-f]{40}", known["code"]["commit"])
    (run,) = {(record.run.run_group, record.run.project) for record in records if record.run.run_id}
    assert run == ("run", "mom")
    exits = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert exits == [0]


def test_samples_of_every_validation_are_kept(folder):
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in sorted({row["step"] for row in rows}) for prompt in ("module", "")
    ]
    assert len(rows) >= 4 and all(isinstance(row["continuation"], str) for row in rows)
