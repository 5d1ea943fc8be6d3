"""The tables that benchmarks write into docs/performance.md, and the rows that they consist of."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mom.runs.files import write_text_atomic

DOCS = Path("docs/performance.md")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a table.

    Args:
        name: a short name, for the command line.
        what: what is measured, in Markdown.
        unit: format of the value, with its unit.
        at_least: target; none if this and ``at_most`` are ``None``.
        at_most: target.
    """

    name: str
    what: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        """The target as text; a dash without one."""
        if self.at_least is not None:
            return f"≥ {self.unit.format(self.at_least)}"
        return "–" if self.at_most is None else f"≤ {self.unit.format(self.at_most)}"

    def met(self, value: float) -> str:
        """Return whether a value meets the target."""
        if self.at_least is None and self.at_most is None:
            return "–"
        is_high = self.at_least is None or value >= self.at_least
        return "yes" if is_high and (self.at_most is None or value <= self.at_most) else "no"

    def reached(self, found: Measured) -> str:
        """Return a measurement as text."""
        value, low, high = (self.unit.format(number) for number in (found.value, found.low, found.high))
        return value if low == high else f"{value} ({low} to {high})"


@dataclasses.dataclass(frozen=True)
class Measured:
    """The median of a measurement's repetitions, and their quartiles.

    Args:
        value: the median.
        low: a quarter of the repetitions are below.
        high: a quarter are above.
        seconds: what was timed, by contender.
    """

    value: float
    low: float
    high: float
    seconds: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[float], seconds: Mapping[str, Sequence[float]] | None = None) -> Measured:
        """Summarize repetitions."""
        ordered = sorted(values)
        low, median, high = (
            ordered * 3 if len(ordered) == 1 else statistics.quantiles(ordered, method="inclusive")
        )
        return cls(median, low, high, seconds or {})


def machine(device: str) -> dict[str, Any]:
    """Describe the machine without its host name."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(": ")[2] if lines else model
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else model,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def today() -> str:
    """Return the date."""
    return datetime.date.today().isoformat()


def table(
    lines: Iterable[Line], measured: Mapping[str, Measured], missing: Mapping[str, str], heading: str
) -> str:
    """Return the table in Markdown, below a heading; lines without a number have a dash, and ``missing`` says why."""
    rows = [f"{heading}.", "", "| what | reached | target | met |", "|---|---|---|---|"]
    for line in lines:
        found = measured.get(line.name)
        reached, met = ("–", "–") if found is None else (line.reached(found), line.met(found.value))
        rows.append(f"| {line.what} | {reached} | {line.target} | {met} |")
    if missing:
        reasons = "; ".join(f"{name.replace('_', ' ')}: {reason}" for name, reason in missing.items())
        rows += ["", f"Not measured: {reasons}."]
    return "\n".join(rows)


def write_docs(docs: Path, command: str, text: str) -> None:
    """Replace what stands between the two marks of a command in a document."""
    begin, end = (f"<!-- {command}: {mark} -->" for mark in ("begin", "end"))
    before, found_begin, rest = docs.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    assert found_begin and found_end, f"{docs} has no marks for the table of {command}"
    write_text_atomic(docs, f"{before}{begin}\n\n{text}\n\n{end}{after}")
