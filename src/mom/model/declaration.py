"""Declarations of options as dataclass fields, each with type, default, range, and help."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mom.model.registry import InvalidOption, as_yaml, one_of

_BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "greater than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}


def option(
    default: Any,
    help: str,
    *,
    group: str | None = "model",
    routed: bool = False,
    **bounds: float,
) -> Any:
    """Declare an option as a dataclass field; its type is the annotation, with ``Literal`` for named choices.

    Args:
        help: a line for users.
        group: its Hydra group, ``model`` or ``router``; ``None`` for ``config.json`` only.
        routed: it has no effect without stages, like everything in the group ``router``.
        bounds: the range of a number by ``ge``, ``gt``, ``le``, and ``lt``, as in pydantic.
    """
    assert bounds.keys() <= _BOUNDS.keys()
    metadata = {"help": help, "group": group, "routed": routed or group == "router", "bounds": bounds}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Declared:
    """A declared option, as :func:`declared` reads it."""

    name: str
    type: Any
    default: Any
    help: str
    group: str | None
    routed: bool
    bounds: Mapping[str, float]

    def check(self, value: Any, option: str = "") -> None:
        """Check type and range; raise :class:`InvalidOption` for ``option``, or else for the option's own name."""
        if not _fits(value, self.type) or not self._in_range(value):
            if get_origin(self.type) is Literal:
                raise InvalidOption(option or self.name, value, one_of(value, get_args(self.type)))
            raise InvalidOption(option or self.name, value, f"must be {self.allowed()}")

    def _in_range(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return is_finite(value) and all(_BOUNDS[name][0](value, bound) for name, bound in self.bounds.items())

    def allowed(self) -> str:
        """Describe the allowed values."""
        bounds = " and ".join(f"{_BOUNDS[name][1]} {bound:g}" for name, bound in self.bounds.items())
        parts: list[str] = []
        for part in _parts(self.type):
            if part in (int, float):
                noun = "an integer" if part is int else "a number"
                parts.append(f"{noun} {'of ' if bounds.startswith('at') else ''}{bounds}".strip())
            elif part is bool:
                parts += ["true", "false"]
            elif get_origin(part) is Literal:
                parts += map(as_yaml, get_args(part))
            elif part is types.NoneType:
                parts.append("null")
            else:
                parts.append({str: "a string", list: "a list", dict: "a mapping"}[get_origin(part) or part])
        if len(parts) < 3:
            return " or ".join(parts)
        return f"{', '.join(parts[:-1])}, or {parts[-1]}"


def is_finite(value: float) -> bool:
    """Return whether a number is finite as a float, into which an integer of 400 digits does not fit."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type; an integer is a number, but true is not an integer."""
    for part in _parts(hint):
        origin = get_origin(part) or part
        if origin is Literal:
            fits = any(value == choice and type(value) is type(choice) for choice in get_args(part))
        elif isinstance(value, bool):
            fits = origin is bool
        else:
            fits = isinstance(value, {float: (int, float), list: (list, tuple)}.get(origin, origin))
        if fits:
            return True
    return False


@cache
def declared(owner: type) -> Mapping[str, Declared]:
    """Return the options that a dataclass declares, by name: ``ModelOptions``, or a kind of router or module."""
    hints = get_type_hints(owner)
    return {
        item.name: Declared(item.name, hints[item.name], item.default, **item.metadata)
        for item in fields(owner)
        if "help" in item.metadata and item.default is not MISSING
    }
