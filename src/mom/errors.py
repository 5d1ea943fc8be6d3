"""Errors that users can fix, and helpers to word them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class UsageError(ValueError):
    """An invalid request, in one sentence that names the option, its value, and what is allowed.

    The command line prints ``error: <message>`` and exits with code 2.

    Args:
        message: lowercase, without a period, such as ``data.separator must be a string, got 3``.
    """


class JobsFailed(Exception):
    """Some jobs of a sweep failed. Their errors have been printed; the command line exits with code 1."""

    def __init__(self, failed: int, jobs: int) -> None:
        super().__init__(f"{failed} of {jobs} jobs failed")


class RunFailed(Exception):
    """A run failed for a known reason. The command line prints it in one line and exits with code 1.

    Attributes:
        records: whether a process that is not the first records it.
    """

    records = False


class RankDied(RunFailed):
    """Other processes of a run have died.

    Args:
        dead: the ranks that died, with their processes.
        records: whether this process records that, because the first process cannot.
    """

    def __init__(self, dead: Mapping[int, object], records: bool = False) -> None:
        who = ", ".join(f"rank {rank} ({process})" for rank, process in dead.items())
        super().__init__(
            f"{who} died; its own output may say why; go on with resume=auto and the same run_dir"
        )
        self.records = records


def as_written(value: object) -> str:
    """Format a value as a user would write it in YAML: ``null``, ``true``, ``abc``, ``[1, 2]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_written(item) for item in value) + "]"
    if isinstance(value, str) and not value:
        return "''"
    return " ".join(str(value).split())


def either(choices: Sequence[object]) -> str:
    """Join alternatives into a phrase: ``a``, ``a or b``, ``a, b, or c``."""
    words = [str(choice) for choice in choices]
    if len(words) < 3:
        return " or ".join(words)
    return f"{', '.join(words[:-1])}, or {words[-1]}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name closest to a misspelled one, or ``None`` if none is close."""
    folded = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return ``; did you mean X?`` if ``name`` looks like a typo of X, else an empty string."""
    close = nearest(str(name), names)
    return f"; did you mean {close}?" if close else ""


def unknown_choice(option: str, given: object, choices: Sequence[str]) -> UsageError:
    """Build the error for an invalid choice, with a suggestion if one of the choices is spelled like it."""
    listed = either(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    return UsageError(
        f"{option} must be {listed or 'null'}, got {as_written(given)}{did_you_mean(given, choices)}"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
