"""Nodes: parts of the configuration that name a class and its keywords, such as a callback or a logger."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from mom.config.checks import conform, is_plain, unknown_option
from mom.errors import RequestError, UsageError, as_written


@dataclass(frozen=True)
class NodeConfig:
    """A class to build, and what to build it with.

    Args:
        option: the node's dotted name, such as ``callbacks.checkpoint``.
        target: dotted path of the class (``_target_``).
        arguments: keywords for it, plain values.
    """

    option: str
    target: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, option: str, given: object) -> NodeConfig:
        """Read a node from its part of the configuration.

        Raises:
            RequestError: if it is not a mapping, has no target, or has another of Hydra's special keys.
        """
        if not isinstance(given, Mapping):
            raise RequestError(
                option, as_written(given), "a group of options with a _target_, or null to leave it out"
            )
        target = given.get("_target_")
        if not isinstance(target, str) or "." not in target:
            raise RequestError(f"{option}._target_", as_written(target), "the dotted path of a class")
        arguments = {str(name): value for name, value in given.items() if name != "_target_"}
        return cls(option, target, arguments)

    def check(self) -> None:
        """Import the target and compare the keywords with its signature. May import heavy libraries.

        Types are compared where the signature names plain ones.

        Raises:
            RequestError: if the target cannot be imported, has no such keyword or wants another type.
        """
        target = self.load()
        keywords = _keywords(target)
        hints = _hints(target)
        for name, value in self.arguments.items():
            option = f"{self.option}.{name}"
            if keywords is not None and name not in keywords:
                raise RequestError(option, as_written(value), unknown_option(self.option, name, keywords))
            if name in hints and is_plain(hints[name]):
                conform(option, value, hints[name])

    def check_builds(self) -> Any:
        """Build the object once, if it needs no more than its keywords.

        For classes that do nothing when made, as Lightning's callbacks: what their constructor refuses
        is then told before the run begins.

        Returns:
            The object, or ``None`` if it cannot be built yet.

        Raises:
            RequestError: if the class refuses its keywords.
        """
        try:
            inspect.signature(self.load()).bind(**self.arguments)
        except TypeError:  # the task adds what is missing
            return None
        return self.instantiate()

    def load(self) -> Callable[..., Any]:
        """Import the target.

        Raises:
            RequestError: if there is no such class.
        """
        module_name, _, name = self.target.rpartition(".")
        try:
            found = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as reason:
            raise RequestError(
                f"{self.option}._target_", self.target, f"the dotted path of a class: {as_written(reason)}"
            ) from reason
        if not callable(found):
            raise RequestError(f"{self.option}._target_", self.target, "the dotted path of a class")
        return found

    def instantiate(self, **extra: Any) -> Any:
        """Build the object. ``extra`` keywords are added, and win over the configuration's.

        Raises:
            RequestError: if the class refuses its keywords; its own words are passed on.
        """
        target = self.load()
        try:
            return target(**{**self.arguments, **extra})
        except UsageError:
            raise
        except Exception as reason:
            given = ", ".join(f"{name}={as_written(value)}" for name, value in self.arguments.items())
            raise RequestError(
                self.option, given or "no options", f"what {self.target} takes: {as_written(str(reason))}"
            ) from reason

    def accepts(self, keyword: str) -> bool:
        """Whether the target takes this keyword, so that a caller may add it in :meth:`instantiate`."""
        keywords = _keywords(self.load())
        return keywords is None or keyword in keywords


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of a class's keywords; none where they cannot be read (names only a type checker knows)."""
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError):
        return {}


def _keywords(target: Callable[..., Any]) -> list[str] | None:
    """Names of the keywords a class takes, or None if it takes any."""
    parameters = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
