"""Each group's own checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mom.config import DataConfig, OptimizerConfig, PretrainConfig, Section, TrainerConfig
from mom.errors import RequestError

SECTIONS = [PretrainConfig, DataConfig, OptimizerConfig, TrainerConfig]

REFUSED: list[tuple[type[Section], dict[str, Any], str]] = [
    (PretrainConfig, {"name": "pretrian"}, "task.name: pretrian; did you mean pretrain?"),
    (PretrainConfig, {"plain_steps": -1}, "task.plain_steps: -1; an integer, at least 0"),
    (DataConfig, {"batch_size": 0}, "data.batch_size: 0; an integer, at least 1"),
    (DataConfig, {"batch_size": "8"}, "data.batch_size: 8; an integer"),
    (DataConfig, {"sequence_length": -4}, "data.sequence_length: -4; an integer, at least 2"),
    (DataConfig, {"tokenizer_vocab_size": 256}, "data.tokenizer_vocab_size: 256; an integer, at least 257"),
    (
        DataConfig,
        {"validation_fraction": 1.0},
        "data.validation_fraction: 1.0; a number, above 0 and below 1",
    ),
    (DataConfig, {"max_bytes": 0}, "data.max_bytes: 0; an integer, at least 1"),
    (DataConfig, {"corpus": "text"}, "data.path: null; a file or folder"),
    (DataConfig, {"path": "a.txt"}, "data.path: a.txt; null for data=python_stdlib"),
    (DataConfig, {"corpus": "text", "path": "a", "text_column": ""}, "data.text_column: ''; "),
    (OptimizerConfig, {"lr": 0}, "optimizer.lr: 0.0; a number, above 0"),
    (OptimizerConfig, {"lr": float("nan")}, "optimizer.lr: nan; "),
    (OptimizerConfig, {"betas": [0.9, 1.0]}, "optimizer.betas: 1.0; a number, at least 0 and below 1"),
    (OptimizerConfig, {"betas": [0.9]}, "optimizer.betas: [0.9]; a list of 2"),
    (OptimizerConfig, {"min_lr_ratio": 1.5}, "optimizer.min_lr_ratio: 1.5; "),
    (OptimizerConfig, {"schedule": "linear"}, "optimizer.schedule: linear; one of cosine, constant"),
    (TrainerConfig, {"max_steps": 0}, "trainer.max_steps: 0; an integer, at least 1"),
    (TrainerConfig, {"max_steps": 1.5}, "trainer.max_steps: 1.5; an integer"),
    (TrainerConfig, {"precision": "bf61"}, "trainer.precision: bf61; did you mean bf16?"),
    (TrainerConfig, {"accelerator": "gup"}, "trainer.accelerator: gup; did you mean gpu?"),
    (TrainerConfig, {"gradient_clip_val": 0}, "trainer.gradient_clip_val: 0.0; a number, above 0"),
    (TrainerConfig, {"val_check_interval": 1.5}, "trainer.val_check_interval: 1.5; "),
    (TrainerConfig, {"val_check_interval": 0}, "trainer.val_check_interval: 0; an integer, at least 1"),
    (TrainerConfig, {"limit_val_batches": -1}, "trainer.limit_val_batches: -1; "),
    (TrainerConfig, {"devices": 0}, "trainer.devices: 0; auto, -1 for all"),
    (TrainerConfig, {"devices": "some"}, "trainer.devices: some; "),
    (TrainerConfig, {"devices": []}, "trainer.devices: []; "),
]


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_hold_and_are_frozen(section: type[Section]) -> None:
    made = section()

    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("section", "given", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_its_dotted_name(
    section: type[Section], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        section.from_mapping(given)

    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "given",
    [
        {"devices": "0,1"},
        {"devices": -1},
        {"devices": [0]},
        {"devices": "auto"},
        {"val_check_interval": 0.25, "check_val_every_n_epoch": 1},
        {"limit_val_batches": 0},
        {"precision": 32},
        {"deterministic": "warn"},
        {"gradient_clip_val": None},
    ],
)
def test_what_lightning_allows_is_allowed(given: dict[str, Any]) -> None:
    made = TrainerConfig.from_mapping(given)

    assert {name: getattr(made, name) for name in given} == given


def test_conversions_are_kept() -> None:
    made = OptimizerConfig.from_mapping({"lr": 1, "betas": [0, 0.5]})

    assert (made.lr, made.betas) == (1.0, (0.0, 0.5))
    assert isinstance(made.lr, float)


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_name_is_refused(section: type[Section]) -> None:
    with pytest.raises(
        RequestError, match=rf"^{section.group}\.zzz: 1; no such option; {section.group} has "
    ):
        section.from_mapping({"zzz": 1})
