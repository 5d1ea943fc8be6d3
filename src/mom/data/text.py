"""Documents in the user's own files: ``.txt``, ``.md``, ``.jsonl``, ``.csv``, these compressed, and ``.parquet``.

Files are streamed, so memory does not grow with them. Errors name the file and the place in it.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mom.data.rows import COMPRESSED, file_kind, not_utf8, open_bytes, open_parquet, os_errors, read_rows
from mom.errors import UsageError

log = logging.getLogger(__name__)

PLAIN_SUFFIXES = (".txt", ".md")
TEXT_COLUMN = "data.text_column"
SUFFIXES = (*PLAIN_SUFFIXES, ".jsonl", ".csv", ".parquet")

# A longer plain text file is cut into several documents: train and validation are split by document, and a book in
# one file has to contribute to both.
PLAIN_DOCUMENT_CHARACTERS = 16_384

_BLOCK_BYTES = 1 << 20
_GZIP_EXPANSION = 4  # of text, to estimate sizes


def list_text_files(path: str | os.PathLike[str]) -> list[tuple[str, Path]]:
    """List the text files under ``path`` as (name, path), sorted by name.

    Args:
        path: a file, or a folder that is searched recursively, also through links. Hidden files, empty links, files
            of other kinds, and ``.csv`` files, most of which hold numbers, are skipped in a folder; a warning counts
            them by kind.

    Returns:
        Names relative to the folder, with forward slashes; for a single file, its own name.

    Raises:
        UsageError: the path does not exist, is a file of another kind, or is a folder without a text file.
    """
    kinds = f"{' '.join(SUFFIXES)} (also {' '.join(COMPRESSED)})"
    allowed = f"data.path must be a file or a folder of files ending in {kinds}"
    given = Path(path).expanduser()
    if given.is_file():
        if not _is_text(given):
            raise UsageError(f"{allowed}, got {path}")
        return [(given.name, given)]
    if not given.is_dir():
        raise UsageError(f"{allowed}, got {path}, which does not exist")
    found, skipped = [], Counter[str]()
    for file in _walk(given, skipped):
        if file.name.startswith("."):
            skipped["hidden"] += 1
        elif not _is_text(file) or file_kind(file) == ".csv":
            skipped["".join(file.suffixes[-2:]).lower() or "no suffix"] += 1
        elif not file.is_file():
            skipped["not a file"] += 1
        else:
            found.append((file.relative_to(given).as_posix(), file))
    counts = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common(8))
    if not found:
        raise UsageError(
            f"{allowed}, got {path}, which has no text file" + (f" ({counts})" if counts else "")
        )
    if skipped:
        log.warning("data.path=%s: skipped files that are not read as text: %s", path, counts)
    return sorted(found)


def _walk(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the files below a folder, following each linked folder once, and count what cannot be searched."""

    def unreadable(error: OSError) -> None:
        skipped["unreadable folder"] += 1

    visited = {os.path.realpath(folder)}
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        kept = []
        for name in sorted(subfolders, key=lambda name: (os.path.islink(os.path.join(parent, name)), name)):
            real = os.path.realpath(os.path.join(parent, name))
            if name.startswith("."):
                skipped["hidden folder"] += 1
            elif real in visited:
                skipped["folder that another link leads to"] += 1
            else:
                visited.add(real)
                kept.append(name)
        subfolders[:] = kept
        yield from (Path(parent, name) for name in names)


def _is_text(file: Path) -> bool:
    kind = file_kind(file)
    return kind in SUFFIXES and not (kind == ".parquet" and file.suffix.lower() != kind)


def text_size(file: Path) -> int:
    """Estimate the bytes of text in ``file``: its uncompressed size."""
    with os_errors(file):
        if file_kind(file) != ".parquet":
            size = file.stat().st_size
            return size if file_kind(file) == file.suffix.lower() else size * _GZIP_EXPANSION
        metadata = open_parquet(file).metadata
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def read_texts(name: str, file: Path, text_column: str) -> Iterator[tuple[str, str]]:
    """Yield the documents of one file as (name, text).

    A plain text file is one document, or several if it is long (``name#0``, ``name#1``, …, cut at blank lines if
    possible); its byte-order mark is dropped, and every line end becomes a newline. Each line of a ``.jsonl`` or
    ``.csv`` file (``name:line``) and each row of a ``.parquet`` file (``name:row``) is one document, counted from 1;
    null is an empty document.

    Args:
        name: the file's name in the corpus.
        file: its path.
        text_column: the key or column of the text in ``.jsonl``, ``.csv``, and ``.parquet`` files.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text, or lacks the column.
    """
    if file_kind(file) in PLAIN_SUFFIXES:
        with os_errors(file):
            yield from _read_plain(name, file)
        return
    for row in read_rows(file, [[text_column]], TEXT_COLUMN):
        text = "" if row.get([text_column]) is None else row.text([text_column], TEXT_COLUMN)
        yield f"{name}:{row.number}", text


def _decoded_blocks(file: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in blocks, with every line end as a newline."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    start = 0  # byte offset of the block
    with open_bytes(file) as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            if (zero := block.find(b"\0")) >= 0:
                raise UsageError(
                    f"cannot read data.path: {file} is a binary file (byte {start + zero} is zero)"
                )
            carried = len(decoder.getstate()[0])  # bytes of a character that began in the previous block
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise not_utf8(file, start - carried + error.start) from error
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
    """Return the end of the document that starts at ``begin``: after a blank line, else a line end, else anywhere."""
    limit = begin + PLAIN_DOCUMENT_CHARACTERS
    for separator in ("\n\n", "\n"):
        # Only the second half is searched, so that no document is very short.
        found = text.rfind(separator, begin + PLAIN_DOCUMENT_CHARACTERS // 2, limit)
        if found >= 0:
            return found + len(separator)
    return limit
