"""The options of each task, a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mom.config.checks import as_written, one_of
from mom.config.sections import TaskConfig
from mom.errors import RequestError


@dataclass(frozen=True)
class PretrainConfig(TaskConfig):
    """Train a language model.

    Args:
        plain_steps: optimiser steps of phase 1, in which the plain transformer is trained that is then
            upcycled. Used when the model has stages and no ``init`` is given; 0 starts the MoM from scratch.
        baseline: train the plain transformer on for as many steps as the MoM and report it beside.
    """

    builds_model: ClassVar[bool] = True
    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling",)

    name: Literal["pretrain"] = "pretrain"
    plain_steps: int = 300
    baseline: bool = True

    def _check(self) -> None:
        self._range("plain_steps", least=0)


TASKS: Mapping[str, type[TaskConfig]] = {"pretrain": PretrainConfig}
"""Every task's section by the task's name."""


def task_section(given: Mapping[str, Any]) -> TaskConfig:
    """Make the section of the task that ``given`` names, pretrain where it names none.

    Raises:
        RequestError: no such task, or an option that it does not have.
    """
    name = given.get("name", PretrainConfig.name)
    if name not in TASKS:
        raise RequestError("task.name", as_written(name), one_of(name, list(TASKS)))
    return TASKS[name].from_mapping(given)
