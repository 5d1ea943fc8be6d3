"""Read the curves of a run: every metric over its optimizer steps, from ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mom.errors import UsageError, first_line

METRICS = "metrics.csv"


class Curve(NamedTuple):
    """A metric over training.

    Attributes:
        steps: optimizer steps done when it was measured, ascending [P].
        values: its values [P].
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def read_curves(folder: str | Path) -> dict[str, Curve]:
    """Return the curves in a run's or phase's directory by metric; empty without a ``metrics.csv``.

    Half a line at the end, which a killed process may have left, is ignored, as are empty cells.

    Raises:
        UsageError: the file cannot be read.
    """
    path = Path(folder) / METRICS
    points: dict[str, dict[float, float]] = {}
    try:
        content = path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].decode("utf-8").splitlines()
        for row in csv.DictReader(lines, restval=""):
            step = row.pop("step", "")
            if not step.isdecimal():
                continue
            for name, cell in row.items():
                # Loggers count a step after it is logged, so the first has number 0. A step's last value counts.
                if name is not None and (value := _number(cell)) is not None:
                    points.setdefault(name, {})[int(step) + 1] = value
    except (FileNotFoundError, NotADirectoryError):  # a row of a table of runs is no directory
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {first_line(error)}") from error
    return {name: _curve(values) for name, values in points.items()}


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _curve(values: dict[float, float]) -> Curve:
    steps = sorted(values)
    return Curve(np.array(steps, dtype=np.float64), np.array([values[step] for step in steps]))
