"""Sections: one frozen dataclass per Hydra group that checks the types and ranges of its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from mom.config.checks import conform, in_range, known_names
from mom.errors import unknown_choice

S = TypeVar("S", bound="Section")


@dataclass(frozen=True)
class Section:
    """A group of options: a subclass names the group and has a field for each option.

    Creating a section checks the types (:func:`~mom.config.checks.conform`) and ranges of its fields.

    Raises:
        UsageError: for the first invalid option.
    """

    group: ClassVar[str]

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Create the section from a mapping, rejecting unknown names."""
        known_names(cls.group, given, [field.name for field in dataclasses.fields(cls)])
        return cls(**given)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            option = f"{self.group}.{field.name}"
            value = conform(option, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        self._check()

    def _check(self) -> None:
        """Reject values that have the right type but are invalid; subclasses override this."""

    def _range(self, names: str, **bounds: float) -> None:
        """Check the bounds (:func:`~mom.config.checks.in_range`) of several fields."""
        for name in names.split():
            in_range(f"{self.group}.{name}", getattr(self, name), **bounds)


def section_by_name(sections: Mapping[str, type[S]], given: Mapping[str, Any], key: str, default: str) -> S:
    """Create the section that the option ``key`` (or else ``default``) names, from the options in ``given``.

    Raises:
        UsageError: for an unknown name, or an invalid option of the section.
    """
    name = given.get(key, default)
    if name not in sections:
        raise unknown_choice(f"{sections[default].group}.{key}", name, list(sections))
    return sections[name].from_mapping(given)


@dataclass(frozen=True)
class TaskConfig(Section):
    """Options of a task. Each task has its own section, which adds options to this one.

    Args:
        name: the task, a module of :mod:`mom.tasks`.
    """

    group: ClassVar[str] = "task"
    # Whether the task builds a model from the model and router groups, which are then checked together.
    builds_model: ClassVar[bool] = False
    # Whether the task needs PyTorch, so that devices, callbacks, and loggers are checked.
    computes: ClassVar[bool] = True
    # Whether the task has a run directory, with a record of its request and its results.
    keeps_record: ClassVar[bool] = True
    # Kinds of data that the task supports; empty if it reads no data.
    data_kinds: ClassVar[tuple[str, ...]] = ()
    # Whether the task reads the cluster group.
    plans: ClassVar[bool] = False
    # Options that may be given on the command line without the prefix ``task.``.
    top_level: ClassVar[tuple[str, ...]] = ()
    # Whether the task requires ``init``, and whether it supports ``ckpt`` and ``resume``.
    needs_init: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    # Whether ``ckpt`` may provide the weights instead of ``init``.
    reads_ckpt: ClassVar[bool] = False

    name: str

    def takes_chosen_model(self) -> bool:
        """Return whether the task builds the model chosen in the model group, rather than models by name."""
        return self.builds_model
