"""Rows of JSON Lines, Parquet, and GLUE's TSV files, or of a dataset on the Hub; errors name the file and the row."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mom.errors import UsageError, first_line

if TYPE_CHECKING:
    import pyarrow.parquet

log = logging.getLogger(__name__)

PATH = "data.path"

Names = Sequence[str]
"""The possible names of a column."""

_PARQUET_ROWS = 256


class Row(NamedTuple):
    """A row and where it was read.

    Attributes:
        place: the file and the row, for errors.
        number: the row, or the line of a text file, counted from 1.
        values: the values by column.
    """

    place: str
    number: int
    values: Mapping[str, Any]

    def get(self, names: Names) -> Any:
        """Return the value of the column with one of these names, ``None`` if there is no such column."""
        return next((self.values[name] for name in names if name in self.values), None)

    def text(self, names: Names, option: str = PATH) -> str:
        """Return the string in the column with one of these names.

        Args:
            names: possible names of the column.
            option: the option that names the column or the file, for errors.

        Raises:
            UsageError: the value is not a string, or UTF-8 cannot encode it.
        """
        value = self.get(names)
        if not isinstance(value, str):
            got = "null" if value is None else type(value).__name__
            raise _unreadable(option, f"column {names[0]} must hold strings, got {got} in {self.place}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, UTF-8 cannot
            raise _unreadable(PATH, f"column {names[0]} has half a surrogate pair in {self.place}") from error
        return value


def read_rows(file: Path, wanted: Sequence[Names], option: str = PATH) -> Iterator[Row]:
    """Stream the rows of a file.

    Args:
        file: a ``.parquet`` file, or JSON Lines, in which blank lines are skipped.
        wanted: the columns to read, each with its possible names. JSON Lines rows keep all of their values.
        option: the option that names the columns, for errors.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has a broken row.
    """
    with os_errors(file):
        if file.suffix.lower() == ".parquet":
            yield from _read_parquet(file, wanted, option)
        else:
            yield from _read_jsonl(file, wanted, option)


def read_tsv(file: Path, wanted: Sequence[Names], columns: Names, skip_broken: bool = False) -> list[Row]:
    """Read a TSV file as GLUE writes it: no quoting, an optional byte-order mark, an optional header.

    Args:
        file: the file.
        wanted: the required columns, each with its possible names.
        columns: the columns of a file without a header.
        skip_broken: skip rows with a wrong number of fields and log how many, instead of raising an error.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has a broken row.
    """
    with os_errors(file):
        lines = [line.removesuffix("\n").removesuffix("\r").split("\t") for line in _lines(file)]
    while lines and lines[-1] == [""]:
        lines.pop()
    if not lines:
        return []
    header: Names = [name.strip() for name in lines[0]]
    start = 1
    is_data = len(header) == len(columns) and not set(header) & set(columns)
    if is_data and not _has_columns(header, wanted):
        header, start = columns, 0
    check_columns(str(file), header, wanted)
    rows, skipped = [], 0
    for number, fields in enumerate(lines[start:], start=start + 1):
        place = f"{file}:{number}"
        if len(fields) == len(header):
            rows.append(Row(place, number, dict(zip(header, fields, strict=True))))
        elif skip_broken:
            skipped += 1
        else:
            raise _unreadable(
                PATH,
                f"{place} must have {len(header)} fields ({', '.join(header)}), got {len(fields)}; "
                "data.skip_broken_rows=true skips such rows",
            )
    if skipped:
        log.warning("%s: skipped %d rows with a wrong number of fields", file, skipped)
    return rows


def read_hub(name: str, splits: Sequence[str], subset: str | None = None) -> dict[str, Iterator[Row]]:
    """Load splits of a dataset, or of one of its subsets, from the Hugging Face Hub.

    Raises:
        UsageError: the Hub cannot be reached or has no such dataset.
    """
    import datasets

    try:
        found = datasets.load_dataset(*filter(None, (name, subset)))
    except Exception as error:  # no network, no such dataset, a broken cache: each has its own type
        raise UsageError(
            f"cannot load {name} from the Hub: {first_line(error)[:160]}; set data.path to a copy of its files"
        ) from error
    return {split: _hub_rows(" ".join(filter(None, (name, subset, split))), found[split]) for split in splits}


def _hub_rows(place: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield Row(f"{place}, row {number}", number, row)


def open_parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    """Open a Parquet file; raise :class:`~mom.errors.UsageError` if it is damaged."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise _unreadable(PATH, f"{file} is not a complete Parquet file") from error


def check_columns(place: str, found: Names, wanted: Sequence[Names], option: str = PATH) -> None:
    """Raise :class:`~mom.errors.UsageError` if one of the ``wanted`` columns is missing."""
    for names in wanted:
        if not _has_columns(found, [names]):
            shown = ", ".join(found)[:200] or "none"
            raise _unreadable(option, f"{place} has no column {' or '.join(names)}; its columns are {shown}")


def _has_columns(found: Names, wanted: Sequence[Names]) -> bool:
    return all(any(name in found for name in names) for names in wanted)


@contextmanager
def os_errors(file: Path) -> Iterator[None]:
    """Turn errors of the operating system into a :class:`~mom.errors.UsageError` that names the file."""
    try:
        yield
    except OSError as error:
        raise _unreadable(PATH, f"{file}: {error.strerror or error}") from error


def not_utf8(file: Path, byte: int) -> UsageError:
    """Return the error for a file that is not UTF-8 at a byte, counted from 0."""
    return _unreadable(PATH, f"{file} is not UTF-8 at byte {byte}")


def _unreadable(option: str, reason: str) -> UsageError:
    return UsageError(f"cannot read {option}: {reason}")


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends, without its byte-order mark."""
    start = 0  # byte offset of the line
    with file.open("rb") as stream:  # text mode would also split lines at a lone carriage return
        for raw in stream:
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(file, start + error.start) from error
            yield line if start else line.removeprefix("\ufeff")
            start += len(raw)


def _read_jsonl(file: Path, wanted: Sequence[Names], option: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise _unreadable(PATH, f"{place} is not JSON ({error.msg})") from error
        if not isinstance(values, dict):
            raise _unreadable(PATH, f"{place} must be a JSON object, got {type(values).__name__}")
        check_columns(place, list(values), wanted, option)
        yield Row(place, number, values)


def _read_parquet(file: Path, wanted: Sequence[Names], option: str) -> Iterator[Row]:
    parquet = open_parquet(file)
    check_columns(str(file), parquet.schema_arrow.names, wanted, option)
    columns = [name for name in parquet.schema_arrow.names if any(name in names for names in wanted)]
    number = 0
    for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
        for values in zip(*batch.columns, strict=True):
            number += 1
            place = f"{file}, row {number}"
            try:
                row = {name: value.as_py() for name, value in zip(columns, values, strict=True)}
            except UnicodeDecodeError as error:
                raise _unreadable(PATH, f"{place} is not UTF-8") from error
            yield Row(place, number, row)
