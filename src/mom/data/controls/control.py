"""The base of all controls, and their registry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from mom.config.data import CONTROLS, ControlSection

if TYPE_CHECKING:
    from torch import Tensor

C = TypeVar("C", bound="Control")

IGNORED = -100
"""Label of a token that is not part of an answer."""


class Examples(NamedTuple):
    """Generated examples; M of them, with T tokens each.

    Attributes:
        input_ids: int64 (M, T), including the answer.
        labels: int64 (M, T), not shifted, as in transformers: the answer tokens, and :data:`IGNORED` elsewhere.
        bucket: int64 (M,), index into :attr:`Control.buckets`; 0 for training examples.
        choices: the right modules by pool, int64 (M, T), if they are known.
    """

    input_ids: Tensor
    labels: Tensor
    bucket: Tensor
    choices: dict[str, Tensor] | None = None


class Control(ControlSection):
    """A task with a known structure, generated from a seed.

    A subclass is a dataclass whose fields are the options of ``data=control/<name>``. The same options give the same
    examples on every machine.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    @abstractmethod
    def sequence_length(self) -> int:
        """T, tokens of an example, including the answer."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Expected exact match of guessing uniformly among the possible answers."""

    @property
    @abstractmethod
    def buckets(self) -> tuple[str, ...]:
        """Names of the parts of the validation set, whose exact match is also reported separately."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The bucket that answers what the control asks."""

    @abstractmethod
    def training(self) -> Examples:
        """Generate the training examples."""

    @abstractmethod
    def validation(self) -> Examples:
        """Generate the validation examples, bucket by bucket."""


def register_control(name: str) -> Callable[[type[C]], type[C]]:
    """Return a decorator that makes a class a frozen dataclass and registers it as ``data.name``.

    Raises:
        ValueError: another class has the name.
    """

    def add(cls: type[C]) -> type[C]:
        other = CONTROLS.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"data.name {name} is already registered by {other.__module__}")
        cls.__annotations__ = {**cls.__annotations__, "name": Literal[name]}
        cls.name = name
        made = dataclass(frozen=True, kw_only=True)(cls)
        CONTROLS[name] = made
        return made

    return add


def answers_only(input_ids: Tensor, num_answers: int = 1) -> Tensor:
    """Return labels that keep the last ``num_answers`` tokens of each row of ``input_ids`` (M, T)."""
    labels = input_ids.clone()
    labels[:, :-num_answers] = IGNORED
    return labels
