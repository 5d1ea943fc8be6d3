"""Nodes: parts of the configuration that name a class and its arguments, such as a callback or a logger."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from mom.config.checks import check_finite, conform, is_plain, unknown_option
from mom.config.old_schedules import replacement
from mom.errors import UsageError, as_written, first_line


@dataclass(frozen=True)
class NodeConfig:
    """A class to instantiate, with its arguments.

    Args:
        option: dotted name of the node, such as ``callbacks.checkpoint``.
        target: dotted path of the class (``_target_``).
        arguments: keyword arguments as plain values.
    """

    option: str
    target: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, option: str, given: object) -> NodeConfig:
        """Read a node from its part of the configuration.

        Raises:
            UsageError: if it is not a mapping or has no valid target.
        """
        if not isinstance(given, Mapping):
            raise UsageError(
                f"{option} must be null or a group of options with a _target_, got {as_written(given)}"
            )
        group, _, name = option.rpartition(".")
        if group == "callbacks" and (message := replacement(name, given)) is not None:
            raise UsageError(message)
        target = given.get("_target_")
        if not isinstance(target, str) or "." not in target:
            raise UsageError(
                f"{option}._target_ must be the dotted path of a class, got {as_written(target)}"
            )
        arguments = {str(name): value for name, value in given.items() if name != "_target_"}
        return cls(option, target, arguments)

    def check(self, base: type) -> None:
        """Import the target and compare the arguments with its signature. May import heavy libraries.

        Numbers must be finite. Types are checked if the signature annotates plain ones.

        Args:
            base: the class that the target must derive from.

        Raises:
            UsageError: if the target cannot be imported, is not such a class, does not take an argument, or expects
                another type.
        """
        target = self.load()
        if not isinstance(target, type) or not issubclass(target, base):
            raise UsageError(
                f"{self.option}._target_ must be a class derived from {base.__module__.rpartition('.')[0]}."
                f"{base.__name__}, got {self.target}"
            )
        keywords = _keywords(target)
        hints = _hints(target)
        for name, value in self.arguments.items():
            option = f"{self.option}.{name}"
            if keywords is not None and name not in keywords:
                raise unknown_option(self.option, name, keywords)
            check_finite(option, value)
            if name in hints and is_plain(hints[name]):
                conform(option, value, hints[name])

    def check_builds(self) -> Any:
        """Build the object to report arguments that its constructor rejects before the run starts.

        Only for classes without side effects in the constructor, such as Lightning's callbacks.

        Returns:
            The object, or ``None`` if it requires arguments that are added later.

        Raises:
            UsageError: if the class rejects its arguments.
        """
        try:
            inspect.signature(self.load()).bind(**self.arguments)
        except TypeError:  # the task adds the missing arguments
            return None
        return self.instantiate()

    def load(self) -> Callable[..., Any]:
        """Import the target.

        Raises:
            UsageError: if there is no such class.
        """
        module_name, _, name = self.target.rpartition(".")
        option = f"{self.option}._target_"
        try:
            found = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as reason:
            raise UsageError(
                f"cannot import {option} {self.target}: {as_written(first_line(reason))}"
            ) from reason
        if not callable(found):
            raise UsageError(f"{option} must be the dotted path of a class, got {self.target}")
        return found

    def instantiate(self, **extra: Any) -> Any:
        """Build the object. ``extra`` arguments are added and take precedence.

        Raises:
            UsageError: if the class rejects its arguments, with its reason.
        """
        target = self.load()
        try:
            return target(**{**self.arguments, **extra})
        except UsageError:
            raise
        except Exception as reason:
            message = as_written(str(reason))
            # The errors of our own classes start with the name of the argument.
            if re.split("[ =]", message, maxsplit=1)[0] in self.arguments:
                raise UsageError(f"{self.option}.{message}") from reason
            given = ", ".join(f"{name}={as_written(value)}" for name, value in self.arguments.items())
            raise UsageError(
                f"cannot build {self.option} with {given or 'no arguments'}: {message}"
            ) from reason

    def accepts(self, keyword: str) -> bool:
        """Return whether the target has this argument, which a caller can then pass to :meth:`instantiate`."""
        keywords = _keywords(self.load())
        return keywords is None or keyword in keywords


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a class's arguments; none if they cannot be resolved at run time."""
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError):
        return {}


def _keywords(target: Callable[..., Any]) -> list[str] | None:
    """Return the names of a class's arguments, or None if it accepts any keyword."""
    parameters = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
