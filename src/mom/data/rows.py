"""Rows of a table file: TSV as GLUE writes it, JSON lines, Parquet; errors name the file and the row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mom.errors import RequestError

OPTION = "data.path"

Names = Sequence[str]


class Row(NamedTuple):
    """One row and where it stands, for errors.

    Attributes:
        place: file and row.
        values: by column.
    """

    place: str
    values: Mapping[str, Any]

    def get(self, names: Names) -> Any:
        """The value of the column that has one of these names; None if there is none."""
        return next((self.values[name] for name in names if name in self.values), None)


def read_table(
    file: Path, wanted: Sequence[Names], columns: Names = (), skip_broken: bool = False
) -> tuple[list[Row], int]:
    """Read a table whole.

    Args:
        file: ``.tsv``, ``.jsonl`` or ``.parquet``.
        wanted: the columns that have to be there, each with the names it may have.
        columns: of a TSV file whose first line is no header.
        skip_broken: leave out TSV rows with a wrong number of fields instead of refusing the file.

    Returns:
        the rows, and how many broken ones were left out.

    Raises:
        RequestError: ``data.path``, if the file cannot be read, lacks a column or has a broken row.
    """
    try:
        if file.suffix == ".tsv":
            return _read_tsv(file, wanted, columns, skip_broken)
        rows = _read_jsonl(file) if file.suffix == ".jsonl" else _read_parquet(file)
    except OSError as error:
        raise RequestError(OPTION, file, f"a file that can be read: {error.strerror or error}") from error
    for row in rows:
        _check_columns(row.place, list(row.values), wanted)
    return rows, 0


def _text(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RequestError(OPTION, f"{file}, byte {error.start}", "text in UTF-8") from error


def _read_tsv(
    file: Path, wanted: Sequence[Names], columns: Names, skip_broken: bool
) -> tuple[list[Row], int]:
    # Not splitlines(): a sentence may hold any of Unicode's other line ends. Quotes are text.
    lines = [line.removesuffix("\r").split("\t") for line in _text(file).split("\n")]
    while lines and lines[-1] == [""]:
        lines.pop()
    if not lines:
        return [], 0
    first = [name.strip() for name in lines[0]]
    if all(any(name in first for name in names) for names in wanted):
        header: Names = first
        begin = 1
    elif len(first) == len(columns) and not set(first) & set(columns):
        header, begin = columns, 0
    else:
        _check_columns(str(file), first, wanted)
        raise AssertionError("unreachable")  # pragma: no cover
    rows, broken = [], 0
    for number, fields in enumerate(lines[begin:], start=begin + 1):
        if len(fields) == len(header):
            rows.append(Row(f"{file}:{number}", dict(zip(header, fields, strict=True))))
        elif skip_broken:
            broken += 1
        else:
            raise RequestError(
                OPTION,
                f"{file}:{number} ({len(fields)} fields)",
                f"{len(header)} fields on each line ({', '.join(header)}), or data.skip_broken_rows=true",
            )
    return rows, broken


def _read_jsonl(file: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(OPTION, f"{place} ({error.msg})", "one JSON object on each line") from error
        if not isinstance(values, dict):
            raise RequestError(OPTION, f"{place} ({type(values).__name__})", "one JSON object on each line")
        rows.append(Row(place, values))
    return rows


def _read_parquet(file: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise RequestError(OPTION, file, "a whole Parquet file") from error
    return [Row(f"{file}, row {number}", row) for number, row in enumerate(values, start=1)]


def _check_columns(place: str, found: Names, wanted: Sequence[Names]) -> None:
    for names in wanted:
        if not any(name in found for name in names):
            listed = ", ".join(" or ".join(one) for one in wanted)
            shown = ", ".join(found)[:200] or "none"
            raise RequestError(
                OPTION, f"{place} (no {' or '.join(names)} among {shown})", f"columns {listed}"
            )
