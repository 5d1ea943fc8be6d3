"""The one error a user can mend, a request that cannot be met; and the end of a sweep with failures."""

from __future__ import annotations


class RequestError(ValueError):
    """A wrong request, told in one line: which option, what was given, what is allowed.

    The command line prints ``error: <option>: <given>; <allowed>`` and exits with code 2.

    Args:
        option: the option's dotted name as typed on the command line, such as ``data.path``.
        given: what the user gave.
        allowed: what would have been right.
    """

    def __init__(self, option: str, given: object, allowed: str) -> None:
        self.option = option
        self.given = given
        self.allowed = allowed
        super().__init__(f"{option}: {given}; {allowed}")

    def __reduce__(self) -> tuple[type, tuple[str, object, str]]:
        """Keep all three parts when the error crosses a process boundary."""
        return type(self), (self.option, self.given, self.allowed)


class JobsFailed(Exception):
    """Some jobs of a sweep failed. Which and why has been told; the command line exits with code 1.

    Args:
        failed: how many.
        jobs: of how many.
    """

    def __init__(self, failed: int, jobs: int) -> None:
        super().__init__(f"{failed} of {jobs} jobs failed")
