"""Checks of single values: type, range, and known names.

Every function raises a :class:`~mom.errors.UsageError` that starts with the option's dotted name, so errors from all
parts of the configuration read alike.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from mom.config.renamed import VALUES_ELSEWHERE, renamed
from mom.errors import UsageError, as_written, did_you_mean, either, nearest
from mom.model.declaration import is_finite

_NOUNS: Mapping[Any, str] = {int: "an integer", float: "a number", str: "a string"}
_PLURALS: Mapping[Any, str] = {int: "integers", float: "numbers", str: "strings"}


def conform(option: str, value: Any, hint: Any) -> Any:
    """Convert ``value`` to the type ``hint``, or reject it.

    An integer is accepted for a float and a list for a tuple. Nothing else is converted, so ``"3"`` is not a number
    and ``true`` is not 1. Numbers must be finite.

    Args:
        option: dotted name, for the error.
        value: the value in the configuration.
        hint: ``int``, ``float``, ``str``, ``bool``, ``None``, ``Literal``, ``list[X]``, ``tuple[X, Y]``,
            ``dict``, or a union of these.
    """
    check_finite(option, value)
    converted = _converted(value, hint)
    if converted is _REJECTED:
        hints = ""
        if isinstance(value, str):
            meant = VALUES_ELSEWHERE.get((option, value))
            hints = f"; did you mean {meant}?" if meant else did_you_mean(value, map(str, _choices(hint)))
        raise UsageError(f"{option} must be {describe(hint)}, got {as_written(value)}{hints}")
    return converted


def check_finite(option: str, value: Any) -> None:
    """Reject a number that is not finite, also within lists and mappings."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(f"{option}.{name}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_finite(option, item)
    elif isinstance(value, int | float) and not is_finite(value):
        raise UsageError(f"{option} must be a finite number, got {value}")


def is_plain(hint: Any) -> bool:
    """Return whether :func:`conform` supports a type hint."""
    if hint in (*_NOUNS, bool, dict, None, types.NoneType) or get_origin(hint) is Literal:
        return True
    return get_origin(hint) in (Union, types.UnionType, list, tuple) and all(map(is_plain, get_args(hint)))


def describe(hint: Any) -> str:
    """Describe the values that a type hint allows: ``an integer or null``, ``one of a, b, c``."""
    # Lists go last: an alternative after "a list of …" could be read as one of its items.
    alternatives = sorted(dict.fromkeys(_alternatives(hint)), key=lambda words: words.startswith("a list"))
    are_values = not any(isinstance(part, type) or get_origin(part) in (list, tuple) for part in _parts(hint))
    if are_values and len(alternatives) > 2:
        return f"one of {', '.join(alternatives)}"
    return either(alternatives)


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, except None and bool, which are described by their values."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(part for part in parts if part not in (None, types.NoneType, bool))


def _alternatives(hint: Any) -> list[str]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return [words for part in get_args(hint) for words in _alternatives(part)]
    if origin is Literal:
        return [as_written(choice) for choice in get_args(hint)]
    if hint is bool:
        return ["true", "false"]
    if hint is None or hint is types.NoneType:
        return ["null"]
    if origin in (list, tuple):
        items = get_args(hint)
        length = f"{len(items)} " if origin is tuple else ""
        return [f"a list of {length}{_PLURALS.get(items[0], f'items, each {describe(items[0])}')}"]
    return ["a group of options" if hint is dict or origin is dict else _NOUNS[hint]]


def in_range(
    option: str,
    value: float | None,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> None:
    """Reject a number that is not finite or is out of bounds (``ge``: at least, ``gt``: more than, …); None passes."""
    if value is None:
        return
    check_finite(option, value)
    if (
        (ge is not None and value < ge)
        or (gt is not None and value <= gt)
        or (le is not None and value > le)
        or (lt is not None and value >= lt)
    ):
        words = ("at least", ge), ("greater than", gt), ("at most", le), ("less than", lt)
        allowed = " and ".join(f"{word} {bound:,}" for word, bound in words if bound is not None)
        if ge is not None and le is not None:
            allowed = f"between {ge:,} and {le:,}"
        raise UsageError(f"{option} must be {allowed}, got {value}")


def known_names(group: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Reject the first key of ``given`` that is not among ``names``; the error suggests the new or closest name."""
    known = list(names)
    for name in given:
        if name not in known:
            raise unknown_option(group, name, known)


def unknown_option(group: str, name: str, known: Sequence[str]) -> UsageError:
    """Build the error for an option that does not exist in ``group`` (empty: at the top level)."""
    prefix = f"{group}." if group else ""
    option = f"{prefix}{name}"
    if (message := renamed(option)) is not None:
        return UsageError(message)
    close = nearest(name, known)
    if close is not None:
        return UsageError(f"unknown option {option}; did you mean {prefix}{close}?")
    scope = f"options of {group}" if group else "options"
    return UsageError(f"unknown option {option}; the {scope} are {', '.join(known)}")


_REJECTED = object()


def _converted(value: Any, hint: Any) -> Any:
    """Return the converted value, or ``_REJECTED``."""
    origin = get_origin(hint)
    if hint is None or hint is types.NoneType:
        return None if value is None else _REJECTED
    if origin in (Union, types.UnionType):
        # Prefer the exact type, so that `int | float` keeps 3 an integer.
        candidates = [_converted(value, part) for part in get_args(hint)]
        fitting = [candidate for candidate in candidates if candidate is not _REJECTED]
        exact = [candidate for candidate in fitting if type(candidate) is type(value)]
        return next(iter([*exact, *fitting]), _REJECTED)
    if origin is Literal:
        same = (
            choice
            for choice in get_args(hint)
            if choice == value and isinstance(choice, bool) == isinstance(value, bool)
        )
        return next(same, _REJECTED)
    if origin is tuple:
        return _converted_items(value, get_args(hint))
    if origin is list:
        length = len(value) if isinstance(value, list | tuple) else 0
        items = _converted_items(value, get_args(hint) * length)
        return items if items is _REJECTED else list(items)
    if origin is dict or hint is dict:
        return dict(value) if isinstance(value, Mapping) else _REJECTED
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and hint is not bool:
        return _REJECTED
    return value if isinstance(value, hint) else _REJECTED


def _converted_items(value: Any, hints: Sequence[Any]) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(hints):
        return _REJECTED
    items = tuple(_converted(item, hint) for item, hint in zip(value, hints, strict=True))
    return _REJECTED if any(item is _REJECTED for item in items) else items


def _choices(hint: Any) -> list[Any]:
    """Return every ``Literal`` value in a hint."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in _choices(part)]


def check_length(sequence_length: int, max_positions: int) -> None:
    """Reject examples or windows that are longer than the model's ``max_positions``."""
    if sequence_length > max_positions:
        raise UsageError(
            f"data.sequence_length must be at most {max_positions}, the model's max_positions, got {sequence_length}"
        )
