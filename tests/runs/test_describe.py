"""Titles of runs: what they are, from what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mom.runs.describe import describe_run, run_of_weights

MOM = {"num_stages": 1, "num_attention_modules": 4, "num_ffn_modules": 6, "num_rounds": 8, "top_k": 2}
TEXT = {"kind": "language_modeling", "corpus": "text", "path": "my_texts"}


def write(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (
            {"model": MOM, "router": {"router": "gru"}, "data": TEXT, "seed": 3},
            "run: 4 attention + 6 FFN modules, 8 rounds, K = 2, gru router, my_texts, seed 3",
        ),
        (
            {
                "model": MOM | {"num_stages": 2, "pools": {"attention": {}, "conv": {}}},
                "arm": "wide",
                "name": "pools",
                "data": {},
            },
            "run (pools, arm wide): 2 stages of attention + conv, 8 rounds, K = 2",
        ),
        (
            {
                "model": {"num_stages": 0, "num_bottom_blocks": 2, "num_top_blocks": 1},
                "data": {"kind": "control", "name": "rules"},
            },
            "run: plain transformer of 3 blocks, control/rules",
        ),
        ({}, "run"),
    ],
)
def test_a_run_is_named_by_model_and_data(tmp_path: Path, config: dict[str, Any], wanted: str) -> None:
    assert describe_run(write(tmp_path / "run", task={"name": "pretrain"}, **config)) == wanted


def test_a_phase_has_its_own_model_and_the_data_of_its_run(tmp_path: Path) -> None:
    run = write(tmp_path / "run", task={"name": "pretrain"}, model=MOM, data=TEXT, seed=0)
    phase = write(run / "baseline", phase="baseline", model={"num_stages": 0, "num_bottom_blocks": 8})
    assert describe_run(phase) == "run, baseline: plain transformer of 8 blocks, my_texts, seed 0"


def test_a_folder_without_records_is_named_by_itself(tmp_path: Path) -> None:
    assert describe_run(tmp_path / "exported") == "exported"


def test_weights_belong_to_the_run_that_wrote_them(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert run_of_weights(checkpoint) == tmp_path / "run"
    assert run_of_weights(tmp_path / "exported") == tmp_path / "exported"
