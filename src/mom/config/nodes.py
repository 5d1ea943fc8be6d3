"""Nodes: parts of the configuration that name a class and its keywords, such as a callback or a logger."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mom.config.checks import as_written, unknown_option
from mom.errors import RequestError


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

        Raises:
            RequestError: if the target cannot be imported or has no such keyword.
        """
        try:
            keywords = _keywords(self.load())
        except TypeError as reason:
            raise RequestError(f"{self.option}._target_", self.target, f"a class: {reason}") from reason
        if keywords is None:
            return
        for name, value in self.arguments.items():
            if name not in keywords:
                raise RequestError(
                    f"{self.option}.{name}", as_written(value), unknown_option(self.option, name, keywords)
                )

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
        """Build the object. ``extra`` keywords are added, and win over the configuration's."""
        return self.load()(**{**self.arguments, **extra})

    def accepts(self, keyword: str) -> bool:
        """Whether the target takes this keyword, so that a caller may add it in :meth:`instantiate`."""
        keywords = _keywords(self.load())
        return keywords is None or keyword in keywords


def _keywords(target: Callable[..., Any]) -> list[str] | None:
    """Names of the keywords a class takes, or None if it takes any."""
    parameters = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
