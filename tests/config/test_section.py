"""Checks of each group."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mom.config import DataConfig, OptimizerConfig, PretrainConfig, Section, TrainerConfig, XsumConfig
from mom.errors import UsageError

SECTIONS = [PretrainConfig, DataConfig, OptimizerConfig, TrainerConfig]

REFUSED: list[tuple[type[Section], dict[str, Any], str]] = [
    (
        PretrainConfig,
        {"name": "pretrian"},
        "task.name must be pretrain, got pretrian; did you mean pretrain?",
    ),
    (PretrainConfig, {"plain_steps": -1}, "task.plain_steps must be at least 0, got -1"),
    (DataConfig, {"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
    (DataConfig, {"batch_size": "8"}, "data.batch_size must be an integer, got 8"),
    (DataConfig, {"sequence_length": -4}, "data.sequence_length must be at least 2, got -4"),
    (
        DataConfig,
        {"tokenizer_vocab_size": 256},
        "data.tokenizer_vocab_size must be between 257 and 2,097,152, got 256",
    ),
    (
        DataConfig,
        {"validation_fraction": 1.0},
        "data.validation_fraction must be greater than 0 and less than 1, got 1.0",
    ),
    (DataConfig, {"max_bytes": 0}, "data.max_bytes must be at least 1, got 0"),
    (DataConfig, {"corpus": "text"}, "data=text requires data.path: a file or directory"),
    (DataConfig, {"path": "a.txt"}, "data.path cannot be combined with data=python_stdlib"),
    (
        DataConfig,
        {"streaming": True},
        "data.streaming cannot be combined with data=python_stdlib, only with data=datasets",
    ),
    (
        DataConfig,
        {"corpus": "text", "path": "a.txt", "split": "test"},
        "data.split cannot be combined with data=text, only with data=datasets",
    ),
    (
        DataConfig,
        {"corpus": "mixture", "mixture": {"a": {"subset": "b"}}},
        "data.mixture.a: data.subset cannot be combined with data=python_stdlib, only with data=datasets",
    ),
    (DataConfig, {"corpus": "text", "path": "a", "text_column": ""}, "data.text_column must be the name"),
    (OptimizerConfig, {"lr": 0}, "optimizer.lr must be greater than 0, got 0.0"),
    (OptimizerConfig, {"lr": float("nan")}, "optimizer.lr must be a finite number, got nan"),
    (OptimizerConfig, {"betas": [0.9, 1.0]}, "optimizer.betas must be at least 0 and less than 1, got 1.0"),
    (OptimizerConfig, {"betas": [0.9]}, "optimizer.betas must be a list of 2 numbers, got [0.9]"),
    (OptimizerConfig, {"min_lr_ratio": 1.5}, "optimizer.min_lr_ratio must be between 0 and 1, got 1.5"),
    (
        OptimizerConfig,
        {"schedule": "cosin"},
        "optimizer.schedule must be one of cosine, linear, constant, wsd",
    ),
    (OptimizerConfig, {"decay_fraction": 0}, "optimizer.decay_fraction must be greater than 0 and at most 1"),
    (TrainerConfig, {"max_steps": 0}, "trainer.max_steps must be at least 1, got 0"),
    (TrainerConfig, {"max_steps": 1.5}, "trainer.max_steps must be an integer, got 1.5"),
    (TrainerConfig, {"precision": "bf61"}, "trainer.precision must be one of "),
    (TrainerConfig, {"accelerator": "gup"}, "trainer.accelerator must be one of "),
    (
        TrainerConfig,
        {"gradient_clip_algorithm": "l1"},
        "trainer.gradient_clip_algorithm must be norm or value",
    ),
    (TrainerConfig, {"gradient_clip_val": 0}, "trainer.gradient_clip_val must be greater than 0, got 0.0"),
    (TrainerConfig, {"val_check_interval": 1.5}, "trainer.val_check_interval must be "),
    (TrainerConfig, {"val_check_interval": 0}, "trainer.val_check_interval must be at least 1, got 0"),
    (TrainerConfig, {"limit_val_batches": -1}, "trainer.limit_val_batches must be "),
    (TrainerConfig, {"fast_dev_run": 0}, "trainer.fast_dev_run must be at least 1, got 0"),
    (
        TrainerConfig,
        {"overfit_batches": 1.5},
        "trainer.overfit_batches must be an integer of at least 0 or a fraction",
    ),
    (
        TrainerConfig,
        {"profiler": "simpel"},
        "trainer.profiler must be one of simple, advanced, pytorch, null, got simpel",
    ),
    (
        TrainerConfig,
        {"fast_dev_run": True, "overfit_batches": 2},
        "trainer.fast_dev_run cannot be combined with trainer.overfit_batches: both limit the batches",
    ),
    (TrainerConfig, {"devices": 0}, "trainer.devices must be auto, -1 for all, "),
    (TrainerConfig, {"devices": "some"}, "trainer.devices must be "),
    (TrainerConfig, {"devices": []}, "trainer.devices must be "),
]


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_valid_and_frozen(section: type[Section]) -> None:
    made = section()

    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("section", "given", "message"), REFUSED)
def test_an_invalid_option_is_rejected_by_its_dotted_name(
    section: type[Section], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        section.from_mapping(given)

    assert str(raised.value).startswith(message)


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
def test_an_unknown_name_is_rejected(section: type[Section]) -> None:
    with pytest.raises(
        UsageError, match=rf"^unknown option {section.group}\.zzz; the options of {section.group} are "
    ):
        section.from_mapping({"zzz": 1})


def test_the_default_length_of_xsum_is_that_of_a_small_model() -> None:
    lengths = [XsumConfig(**given).fitted(positions).window for given, positions in LENGTHS]

    assert lengths == [128, 512, 512, 80]
    assert XsumConfig().window == 512


LENGTHS: list[tuple[dict[str, int], int]] = [({}, 128), ({}, 512), ({}, 2048), ({"sequence_length": 80}, 20)]
