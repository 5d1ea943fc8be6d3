"""Checks of single values: the right type, a sensible range, a known name; each says what is allowed.

Every function raises :class:`~mom.errors.RequestError` with the option's dotted name, so that a wrong request
ends in one line whichever part of the configuration it is in.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from mom.config.renamed import RENAMED
from mom.errors import RequestError, UsageError, as_written, nearest

_WORDS: Mapping[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    types.NoneType: "null",
}


def conform(option: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint`` wants it, or refuse it.

    An integer is taken where a float is wanted and a list where a tuple is; nothing else is converted, so
    that ``"3"`` is not a number and ``true`` is not 1.

    Args:
        option: dotted name, for the error.
        value: what the configuration holds.
        hint: ``int``, ``float``, ``str``, ``bool``, ``None``, ``Literal``, ``list[X]``, ``tuple[X, Y]``,
            ``dict`` or a union of these.

    Raises:
        RequestError: if the value has another type.
    """
    found = _conformed(value, hint)
    if found is _REFUSED:
        names = [str(choice) for choice in _choices(hint)]
        close = nearest(value, names) if isinstance(value, str) else None
        allowed = describe(hint)
        raise RequestError(
            option, as_written(value), f"did you mean {close}? {allowed}" if close else allowed
        )
    return found


def is_plain(hint: Any) -> bool:
    """Whether :func:`conform` knows a hint: numbers, texts, booleans, None, and lists and unions of them."""
    if hint is None or hint in (*_WORDS, dict):
        return True
    if get_origin(hint) is Literal:
        return True
    return get_origin(hint) in (Union, types.UnionType, list, tuple) and all(map(is_plain, get_args(hint)))


def describe(hint: Any) -> str:
    """What a type hint allows, in words."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        *first, last = [describe(part) for part in get_args(hint)]
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        choices = list(dict.fromkeys(map(as_written, get_args(hint))))
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if origin is tuple:
        return f"a list of {len(get_args(hint))}: {', '.join(describe(part) for part in get_args(hint))}"
    if origin is list:
        return f"a list, each {describe(get_args(hint)[0])}"
    if origin is dict or hint is dict:
        return "a group of options"
    return _WORDS[hint]


def in_range(
    option: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a number outside ``[least or (above, most] or below)``; None passes, NaN and infinity do not."""
    if value is None:
        return
    bounds = []
    if least is not None:
        bounds.append((value >= least, f"at least {least:,}"))
    if above is not None:
        bounds.append((value > above, f"above {above:,}"))
    if most is not None:
        bounds.append((value <= most, f"at most {most:,}"))
    if below is not None:
        bounds.append((value < below, f"below {below:,}"))
    if not math.isfinite(value) or not all(holds for holds, _ in bounds):
        kind = "an integer" if isinstance(value, int) else "a number"
        raise RequestError(option, as_written(value), f"{kind}, {' and '.join(text for _, text in bounds)}")


def known_names(group: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse the first key of ``given`` that is not among ``names``, with the nearest spelling."""
    known = list(names)
    for name in given:
        if (new := RENAMED.get(f"{group}.{name}")) is not None and name not in known:
            raise UsageError(f"{group}.{name} was renamed to {new}")
        if name not in known:
            raise RequestError(f"{group}.{name}", as_written(given[name]), unknown_option(group, name, known))


def unknown_option(group: str, name: str, known: Sequence[str]) -> str:
    """The *allowed* part for an option that does not exist: the nearest spelling, or what there is."""
    close = nearest(name, known)
    inside = f"{group} has" if group else "there are"
    prefix = f"{group}." if group else ""
    if close is not None:
        return f"no such option, did you mean {prefix}{close}?"
    return f"no such option; {inside} {', '.join(known)}"


_REFUSED = object()


def _conformed(value: Any, hint: Any) -> Any:
    """The converted value, or ``_REFUSED``."""
    origin = get_origin(hint)
    if hint is None or hint is types.NoneType:
        return None if value is None else _REFUSED
    if origin in (Union, types.UnionType):
        # The exact type first, so that `int | float` keeps 3 an integer.
        found = [_conformed(value, part) for part in get_args(hint)]
        fitting = [one for one in found if one is not _REFUSED]
        return next((one for one in fitting if type(one) is type(value)), fitting[0] if fitting else _REFUSED)
    if origin is Literal:
        same = [
            one for one in get_args(hint) if one == value and isinstance(one, bool) == isinstance(value, bool)
        ]
        return same[0] if same else _REFUSED
    if origin is tuple:
        return _conformed_items(value, get_args(hint))
    if origin is list:
        length = len(value) if isinstance(value, list | tuple) else 0
        items = _conformed_items(value, get_args(hint) * length)
        return items if items is _REFUSED else list(items)
    if origin is dict or hint is dict:
        return dict(value) if isinstance(value, Mapping) else _REFUSED
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and hint is not bool:
        return _REFUSED
    return value if isinstance(value, hint) else _REFUSED


def _conformed_items(value: Any, hints: Sequence[Any]) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(hints):
        return _REFUSED
    items = tuple(_conformed(item, hint) for item, hint in zip(value, hints, strict=True))
    return _REFUSED if any(item is _REFUSED for item in items) else items


def _choices(hint: Any) -> list[Any]:
    """Every named choice in a hint, for the nearest spelling."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in _choices(part)] if get_args(hint) else []


def check_length(sequence_length: int, max_positions: int) -> None:
    """Refuse examples or windows longer than the model's positions."""
    if sequence_length > max_positions:
        raise RequestError(
            "data.sequence_length", sequence_length, f"at most {max_positions}, the positions of the model"
        )
