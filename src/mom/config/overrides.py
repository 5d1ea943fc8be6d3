"""Overrides as people and programs type them, converted to Hydra's grammar, and values written in that grammar."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from mom.errors import UsageError
from mom.runs.records import STAGE_OPTIONS

TEXTS = ("prompt", "task.prompt", "notes")
"""Options whose value is text: it is taken as it was typed."""

_RUN_DIR = "hydra.run.dir"
_PLAIN = re.compile(r"[A-Za-z_./][\w./@%+-]*", re.ASCII)
"""Strings that need no quotes in Hydra's grammar, except null, true, false, and numbers such as inf."""
_RESERVED = {"null", "true", "false", "nan", "inf", "none", "yes", "no", "on", "off"}


def as_typed(overrides: Sequence[str], *, is_sweep: bool = False) -> list[str]:
    """Convert overrides that Hydra's grammar would reject or misread.

    - The value of an option in :data:`TEXTS` is the text as typed: ``prompt=def main(args):``. If it is entirely
      inside quotes, these are Hydra's. In a sweep, commas separate values as in every option.
    - A value that cannot be parsed is text too (``data.path=my texts (new)/``), unless it begins like a list, a group,
      or a quoted text.
    - A group may be a Python dictionary, as the agent of Weights & Biases passes nested parameters:
      ``model={'top_k': 2}`` becomes ``model.top_k=2``.
    - ``hydra.run.dir=X`` becomes ``run_dir=X``.

    Raises:
        UsageError: for both ``hydra.run.dir`` and ``run_dir``.
    """
    converted: list[str] = []
    for override in overrides:
        option, equals, value = override.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", option):
            converted.append(override)
        elif option == _RUN_DIR:
            # Lightning passes our own ".", which stands for none, to the processes that it starts.
            if value.strip("\"'") != ".":
                converted.append(f"run_dir={value}")
        elif value.startswith("{") and (nested := _python_dictionary(value)) is not None:
            converted += _flattened(option, nested)
        elif _is_text(override, is_sweep):
            converted.append(f"{option}={quoted(value)}")
        else:
            converted.append(override)
    names = {override.partition("=")[0] for override in overrides}
    if _RUN_DIR in names and "run_dir" in names:
        raise UsageError(f"{_RUN_DIR} cannot be combined with run_dir: both name the run directory")
    return converted


def quoted(text: str) -> str:
    """Return a text as a value in Hydra's grammar that stands for exactly this text, also if it looks like ``${x}``."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf resolves references also within quotes
    return QuotedString(literal, Quote.single).with_quotes()


def written(value: Any) -> str:
    """Return plain data as a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) is not None and value.lower() not in _RESERVED
        return value if is_plain else quoted(value)
    return str(value)


def written_overrides(options: Mapping[str, Any]) -> list[str]:
    """Return overrides for options by their dotted names."""
    return [f"{name}={written(value)}" for name, value in options.items()]


def without(overrides: Iterable[str], *options: str) -> list[str]:
    """Return the overrides of all but these options."""
    return [override for override in overrides if override.partition("=")[0].lstrip("+") not in options]


def without_stages(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that have no effect on a plain transformer, such as ``router=gru`` and ``model.top_k=2``."""
    names = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    return [
        override
        for override, name in names.items()
        if any(f"{name}.".startswith(f"{option}.") for option in STAGE_OPTIONS)
    ]


def _python_dictionary(value: str) -> dict[str, Any] | None:
    """Return the dictionary that a value is in Python, with strings as keys; ``None`` if it is none."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    is_nested = isinstance(found, dict) and found and all(isinstance(name, str) for name in found)
    return found if is_nested else None


def _flattened(option: str, nested: Mapping[str, Any]) -> list[str]:
    return written_overrides({f"{option}.{name}": value for name, value in nested.items()})


def _is_text(override: str, is_sweep: bool) -> bool:
    """Return whether the value is to be quoted: it is text by its option, or cannot be parsed."""
    option, _, value = override.partition("=")
    if option in TEXTS and not is_sweep:
        return value != "null" and not _is_quoted(override)
    return bool(value.strip()) and value[0] not in "[{'\"" and not _is_valid(override)


def _is_quoted(override: str) -> bool:
    """Return whether the value is one quoted text in Hydra's grammar."""
    try:
        return isinstance(OverridesParser.create().parse_override(override)._value, QuotedString)
    except HydraException:
        return False


def _is_valid(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True
