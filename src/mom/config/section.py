"""One frozen dataclass for each Hydra group; each checks its own types and ranges when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from mom.config.checks import conform, in_range, known_names


@dataclass(frozen=True)
class Section:
    """A group of options. Subclasses name the group, their fields are its options.

    Making one checks every field's type (an integer is fine for a float, a list for a tuple), then its range.

    Raises:
        RequestError: for the first option that cannot be.
    """

    group: ClassVar[str]

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Make the section from a mapping; a name it does not have is refused with the nearest spelling."""
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
        """Refuse values of the right type that cannot be; overridden where there are such."""

    def _range(self, names: str, **bounds: float) -> None:
        for name in names.split():
            in_range(f"{self.group}.{name}", getattr(self, name), **bounds)


@dataclass(frozen=True)
class TaskConfig(Section):
    """What to do. Each task has a section of its own, which adds its options to this one.

    Args:
        name: the task, a module of :mod:`mom.tasks`.
    """

    group: ClassVar[str] = "task"
    # Whether the task makes a model by the model and router groups, which are then checked together.
    builds_model: ClassVar[bool] = False
    # Whether the task needs PyTorch, and with it devices, callbacks and loggers to check.
    computes: ClassVar[bool] = True
    # Which kinds of data the task works on; empty where it reads none.
    data_kinds: ClassVar[tuple[str, ...]] = ()
    # Options that the command line also knows without ``task.`` in front.
    top_level: ClassVar[tuple[str, ...]] = ()
    # Whether the task cannot do without ``init``, and whether it can go on from ``ckpt`` or ``resume``.
    needs_init: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    # Whether `ckpt` may name the weights in the place of `init`.
    reads_ckpt: ClassVar[bool] = False

    name: str

    def takes_chosen_model(self) -> bool:
        """Whether this request's task makes the model of the model group, and not others by name."""
        return self.builds_model
