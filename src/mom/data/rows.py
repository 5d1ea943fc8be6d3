"""Rows of JSON Lines, CSV, Parquet, and GLUE's TSV files, or of a Hub dataset; errors name the file and the row."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import logging
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from mom.errors import UsageError, first_line
from mom.runs.files import parse_json

if TYPE_CHECKING:
    import pyarrow.parquet

log = logging.getLogger(__name__)

PATH = "data.path"

Names = Sequence[str]
"""The possible names of a column."""

LARGEST_ROW = 1 << 25
"""Bytes of the longest line or value that is read: tokenizing needs about a hundred times as much memory."""

_PARQUET_ROWS = 256  # at most; fewer if rows may be long
_PARQUET_BYTES = 1 << 25
_BUFFER_BYTES = 1 << 20  # instead of reading a whole row group
# A page of a Parquet file is decompressed at once, so a few kilobytes could ask for gigabytes. Text does not compress
# by this factor.
_LARGEST_EXPANSION = 1000

COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
"""Compressions by suffix."""


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
            UsageError: the value is not a string, UTF-8 cannot encode it, or it is longer than :data:`LARGEST_ROW`.
        """
        value = self.get(names)
        if not isinstance(value, str):
            got = "null" if value is None else type(value).__name__
            raise _unreadable(option, f"column {names[0]} must hold strings, got {got} in {self.place}")
        if len(value) > LARGEST_ROW:
            raise _too_large(f"column {names[0]} in {self.place}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, UTF-8 cannot
            raise _unreadable(PATH, f"column {names[0]} has half a surrogate pair in {self.place}") from error
        return value


def read_rows(
    file: Path, wanted: Sequence[Names], option: str = PATH, optional: Sequence[Names] = ()
) -> Iterator[Row]:
    """Stream the rows of a file.

    Args:
        file: a ``.parquet`` file, or CSV with a header or JSON Lines, possibly compressed, in which blank lines are
            skipped.
        wanted: the columns to read, each with its possible names. Rows that are not Parquet keep all of their values.
        option: the option that names the columns, for errors.
        optional: further columns, which the file may lack.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has a broken row.
    """
    with os_errors(file):
        if file_kind(file) == ".parquet":
            yield from _read_parquet(file, wanted, option, optional)
        elif file_kind(file) == ".csv":
            yield from _read_csv(file, wanted, option)
        else:
            yield from _read_jsonl(file, wanted, option)


def find_split(folder: Path, stems: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a split: ``train.jsonl``, or ``train-00000-of-00002.parquet`` and the other shards.

    Args:
        folder: the folder of the dataset.
        stems: possible names of the split.
        suffixes: possible suffixes of a single file.

    Raises:
        UsageError: a shard is missing.
    """
    for stem in stems:
        for suffix in suffixes:
            if (file := folder / f"{stem}{suffix}").is_file():
                return [file]
        if shards := sorted(folder.glob(f"{stem}-[0-9]*-of-[0-9]*.parquet")):
            wanted = int(shards[0].stem.rpartition("-of-")[2])
            if len(shards) != wanted:
                raise _unreadable(
                    PATH, f"{folder} must have {wanted} files {stem}-*.parquet, got {len(shards)}"
                )
            return shards
    return []


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


def file_kind(file: Path) -> str:
    """Return the suffix that says how to read a file: that of the uncompressed file, in lower case."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix in COMPRESSED else suffix


def open_bytes(file: Path) -> BinaryIO:
    """Open a file to read its bytes, uncompressed if its suffix is one of :data:`COMPRESSED`."""
    suffix = file.suffix.lower()
    if suffix == ".zst":
        import pyarrow

        return cast("BinaryIO", io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")))
    openers: Mapping[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return cast("BinaryIO", openers.get(suffix, open)(file, "rb"))


def open_parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    """Open a Parquet file; raise :class:`~mom.errors.UsageError` if it is damaged."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the last for names of columns
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
    """Turn errors of the system and of decompression into a :class:`~mom.errors.UsageError` that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        kind = COMPRESSED.get(file.suffix.lower())
        if kind is not None and getattr(error, "errno", None) is None:
            raise _unreadable(PATH, f"{file} is not a complete {kind} file ({first_line(error)})") from error
        if not isinstance(error, OSError):
            raise
        raise _unreadable(PATH, f"{file}: {error.strerror or first_line(error)}") from error


def not_utf8(file: Path, byte: int) -> UsageError:
    """Return the error for a file that is not UTF-8 at a byte, counted from 0."""
    return _unreadable(PATH, f"{file} is not UTF-8 at byte {byte}")


def _unreadable(option: str, reason: str) -> UsageError:
    return UsageError(f"cannot read {option}: {reason}")


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends, without its byte-order mark."""
    start = 0  # byte offset of the line
    with open_bytes(file) as stream:  # text mode would also split lines at a lone carriage return
        while raw := stream.readline(LARGEST_ROW + 1):
            if len(raw) > LARGEST_ROW:
                raise _too_large(f"the line at byte {start} of {file}")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(file, start + error.start) from error
            yield line if start else line.removeprefix("\ufeff")
            start += len(raw)


def _too_large(place: str) -> UsageError:
    return _unreadable(PATH, f"{place} must have at most {LARGEST_ROW:,} bytes")


def _read_jsonl(file: Path, wanted: Sequence[Names], option: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            raise _unreadable(PATH, f"{place} is not JSON ({first_line(error)})") from error
        if not isinstance(values, dict):
            raise _unreadable(PATH, f"{place} must be a JSON object, got {type(values).__name__}")
        check_columns(place, list(values), wanted, option)
        yield Row(place, number, values)


def _read_csv(file: Path, wanted: Sequence[Names], option: str) -> Iterator[Row]:
    """Read CSV with a header, in which quoted values may hold line ends."""
    csv.field_size_limit(LARGEST_ROW)
    reader = csv.reader(_lines(file), strict=True)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            place, start = f"{file}:{start}", reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = fields
                check_columns(str(file), header, wanted, option)
            elif len(fields) != len(header):
                raise _unreadable(PATH, f"{place} must have {len(header)} fields, got {len(fields)}")
            else:
                yield Row(place, reader.line_num, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise _unreadable(PATH, f"{file}:{start} is not CSV ({first_line(error)})") from error


def _read_parquet(
    file: Path, wanted: Sequence[Names], option: str, optional: Sequence[Names]
) -> Iterator[Row]:
    import pyarrow

    parquet, number = open_parquet(file), 0
    try:
        found = parquet.schema_arrow.names
        check_columns(str(file), found, wanted, option)
        known = (*wanted, *optional)
        columns = [name for name in dict.fromkeys(found) if any(name in names for names in known)]
        for group in range(parquet.num_row_groups):
            rows = _rows_in_memory(parquet, group, file)
            for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                for index in range(len(batch)):
                    number += 1
                    yield _parquet_row(batch, index, f"{file}, row {number}", number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise _unreadable(
            PATH, f"{file} is damaged after row {number} ({first_line(error)[:160]})"
        ) from error


def _rows_in_memory(parquet: pyarrow.parquet.ParquetFile, group: int, file: Path) -> int:
    """Return the number of rows to read at a time, so that they take at most :data:`_PARQUET_BYTES`, or a single row.

    A column with a dictionary can repeat its longest string in every row, so a row may be as long as the row group. The
    sizes of single columns are not asked for: on some damaged files, pyarrow then ends the process.
    """
    size, compressed = parquet.metadata.row_group(group).total_byte_size, file.stat().st_size
    if size > LARGEST_ROW and size > compressed * _LARGEST_EXPANSION:
        raise _unreadable(
            PATH, f"row group {group + 1} of {file} expands from {compressed:,} to {size:,} bytes"
        )
    return max(1, min(_PARQUET_ROWS, _PARQUET_BYTES // max(1, size)))


def _parquet_row(batch: pyarrow.RecordBatch, index: int, place: str, number: int) -> Row:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            raise _unreadable(PATH, f"{place} is not UTF-8") from error
        except (ValueError, OverflowError) as error:  # such as a date that Python does not have
            raise _unreadable(
                PATH, f"column {name} cannot be read in {place}: {first_line(error)}"
            ) from error
    return Row(place, number, row)
