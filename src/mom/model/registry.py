"""The kinds of routers and pools by name, and the error for an invalid option."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


class InvalidOption(ValueError):
    """An invalid value of a model's option.

    Args:
        option: name of the option.
        value: the value given.
        rule: the rule that it breaks, such as "must be at least 1".
        hint: a remedy.
    """

    def __init__(self, option: str, value: Any, rule: str, hint: str = "") -> None:
        super().__init__(option, value, rule, hint)
        self.option, self.value, self.rule, self.hint = option, value, rule, hint

    def sentence(self, prefix: str = "") -> str:
        """Return the message, with ``prefix`` (such as ``model.``) in front of the option's name."""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{prefix}{self.option} {self.rule}, got {as_yaml(self.value)}{hint}"

    def __str__(self) -> str:
        return self.sentence()


def as_yaml(value: Any) -> str:
    """Write a value as users type it: ``true``, ``null``, ``[a, b]``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    return "''" if value == "" else str(value)


class Registry(dict[str, Any]):
    """Classes by name, which are the values of ``option``."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option

    def register(self, name: str) -> Callable[[type], type]:
        """Return a decorator that makes a class a frozen dataclass and registers it.

        Raises:
            ValueError: another class has the name.
        """

        def add(cls: type) -> type:
            other = self.get(name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{self.option} {name} is already registered by {other.__module__}")
            made: Any = dataclass(frozen=True, kw_only=True)(cls)
            made.name = name
            self[name] = made
            return made

        return add

    def find(self, name: Any, option: str = "") -> Any:
        """Return the class registered as ``name``.

        Raises:
            InvalidOption: no class has that name.
        """
        if isinstance(name, str) and name in self:
            return self[name]
        hint = "if a plugin registers it, import that with plugins=[my_package.my_module]"
        raise InvalidOption(option or self.option, name, one_of(name, self), hint)


def one_of(value: Any, names: Iterable[str]) -> str:
    """Return the rule that a value must be one of ``names``, with the nearest name if ``value`` looks like a typo."""
    known = list(names)
    close = difflib.get_close_matches(str(value).lower(), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"must be one of {', '.join(known)}{hint}"


routers = Registry("router")
"""Router kinds (:class:`mom.model.routers.RouterKind`)."""

pools = Registry("kind")
"""Module kinds (:class:`mom.model.pools.PoolKind`)."""

register_router = routers.register
register_pool = pools.register
