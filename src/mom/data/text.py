"""Reading the user's own text: ``.txt``, ``.md``, ``.jsonl`` and ``.parquet`` files.

Every reader streams, so that memory does not grow with the file, and reports what is wrong with a file as
a :class:`~mom.errors.RequestError` that names the file and the place in it.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mom.errors import RequestError

if TYPE_CHECKING:
    import pyarrow.parquet

OPTION = "data.path"
PLAIN_SUFFIXES = (".txt", ".md")
SUFFIXES = (*PLAIN_SUFFIXES, ".jsonl", ".parquet")

# A plain text file longer than this many characters is cut into several documents: the split into train and
# validation is by document, and a book in one file must be able to give to both.
PLAIN_DOCUMENT_CHARACTERS = 16_384

_BLOCK_BYTES = 1 << 20
_PARQUET_ROWS = 256


def list_text_files(path: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """List the text files under ``path`` as (name, path), sorted by name.

    Args:
        path: a file, or a folder that is searched recursively. In a folder, hidden files and files of other
            kinds are left out.

    Returns:
        names relative to the folder (a lone file's own name), with forward slashes.

    Raises:
        RequestError: nothing there, a file of another kind, or a folder without a text file.
    """
    allowed = f"a file or a folder of files ending in {' '.join(SUFFIXES)}"
    given = Path(path).expanduser()
    if given.is_file():
        if given.suffix.lower() not in SUFFIXES:
            raise RequestError(OPTION, path, allowed)
        return [(given.name, given)]
    if not given.is_dir():
        raise RequestError(OPTION, f"{path} (not found)", allowed)
    found = []
    for folder, subfolders, names in os.walk(given):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if file.suffix.lower() in SUFFIXES and not name.startswith(".") and file.is_file():
                found.append((file.relative_to(given).as_posix(), file))
    if not found:
        raise RequestError(OPTION, f"{path} (no text file in it)", allowed)
    return sorted(found)


def text_size(file: Path) -> int:
    """Estimate the bytes of text in ``file``, for a progress bar: its size, uncompressed."""
    if file.suffix.lower() != ".parquet":
        return file.stat().st_size
    metadata = _open_parquet(file).metadata
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def read_texts(name: str, file: Path, text_column: str) -> Iterator[tuple[str, str]]:
    """Yield the documents of one file as (name, text).

    A plain text file is one document, or several when it is long (``name#0``, ``name#1``, …, cut at blank
    lines where there are any). Each line of a ``.jsonl`` file (``name:line``) and each row of a ``.parquet``
    file (``name:row``) is one; both count from 1. A byte-order mark is dropped, and in plain text every line
    end becomes a newline. A null text is an empty document.

    Args:
        name: the file's name in the corpus.
        file: where it is.
        text_column: the key or column that holds the text in ``.jsonl`` and ``.parquet``.

    Raises:
        RequestError: the file cannot be read, is not text in UTF-8, or lacks the column.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".jsonl":
            yield from _read_jsonl(name, file, text_column)
        elif suffix == ".parquet":
            yield from _read_parquet(name, file, text_column)
        else:
            yield from _read_plain(name, file)
    except OSError as error:
        raise RequestError(OPTION, file, f"a file that can be read: {error.strerror or error}") from error


def _not_utf8(file: Path, byte: int) -> RequestError:
    return RequestError(OPTION, f"{file}, byte {byte}", "text in UTF-8")


def _decoded_blocks(file: Path) -> Iterator[str]:
    """Yield a UTF-8 file in blocks of text, with newlines as its only line ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    start = 0  # of the block, in bytes
    with file.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            if (zero := block.find(b"\0")) >= 0:
                raise RequestError(OPTION, f"{file}, byte {start + zero} is zero", "text, not a binary file")
            carried = len(decoder.getstate()[0])  # bytes of a character that began in the last block
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(file, start - carried + error.start) from error
            if start == 0:
                text = text.removeprefix("\ufeff")
            yield newlines.decode(text, final=not block)
            if not block:
                return
            start += len(block)


def _read_plain(name: str, file: Path) -> Iterator[tuple[str, str]]:
    part = 0
    pending = ""
    for block in _decoded_blocks(file):
        pending += block
        begin = 0
        while len(pending) - begin > PLAIN_DOCUMENT_CHARACTERS:
            end = _cut(pending, begin)
            yield f"{name}#{part}", pending[begin:end]
            part, begin = part + 1, end
        pending = pending[begin:]
    if pending or part == 0:
        yield f"{name}#{part}", pending


def _cut(text: str, begin: int) -> int:
    """Find where the document that starts at ``begin`` ends: a blank line, else a line end, else anywhere."""
    limit = begin + PLAIN_DOCUMENT_CHARACTERS
    for separator in ("\n\n", "\n"):
        # Only the second half is searched, so that no document becomes very short.
        found = text.rfind(separator, begin + PLAIN_DOCUMENT_CHARACTERS // 2, limit)
        if found >= 0:
            return found + len(separator)
    return limit


def _read_jsonl(name: str, file: Path, text_column: str) -> Iterator[tuple[str, str]]:
    start = 0  # of the line, in bytes
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            place = f"{file}:{number}"
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(file, start + error.start) from error
            if number == 1:
                line = line.removeprefix("\ufeff")
            start += len(raw)
            if line.strip():
                yield f"{name}:{number}", _jsonl_text(place, line, text_column)


def _jsonl_text(place: str, line: str, text_column: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(OPTION, f"{place} ({error.msg})", "one JSON object on each line") from error
    if not isinstance(row, dict):
        raise RequestError(OPTION, f"{place} ({type(row).__name__})", "one JSON object on each line")
    if text_column not in row:
        raise RequestError(
            "data.text_column",
            f"{text_column} (not in {place})",
            f"one of {', '.join(sorted(row)) or 'no key'}",
        )
    text = row[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise RequestError(
            "data.text_column",
            f"{text_column} ({type(text).__name__} in {place})",
            "a key whose values are text",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, UTF-8 cannot
        raise RequestError(OPTION, f"{place} (half a surrogate pair)", "text that UTF-8 can hold") from error
    return text


def _open_parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise RequestError(OPTION, file, "a whole Parquet file") from error


def _read_parquet(name: str, file: Path, text_column: str) -> Iterator[tuple[str, str]]:
    import pyarrow.types

    parquet = _open_parquet(file)
    schema = parquet.schema_arrow
    if text_column not in schema.names:
        raise RequestError(
            "data.text_column", f"{text_column} (not in {file})", f"one of {', '.join(schema.names)}"
        )
    kind = schema.field(text_column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise RequestError("data.text_column", f"{text_column} ({kind} in {file})", "a column of strings")
    row = 0
    for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_column]):
        for value in batch.column(0):
            row += 1
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise RequestError(OPTION, f"{file}, row {row}", "text in UTF-8") from error
            yield f"{name}:{row}", text or ""
