"""Corpora: documents in a fixed order, streamed, with a fingerprint of their content.

There are four kinds: the sources and the language reference of the running Python (``python_stdlib``), the sources of
all installed packages (``python_packages``), the user's own files (``text``), and a dataset on the Hub or in local
files (``datasets``). The first two need no download, because every Python has them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import site
import sysconfig
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom.data import text as text_files
from mom.data.rows import PATH, Row, check_columns, os_errors
from mom.errors import UsageError, first_line

if TYPE_CHECKING:
    from mom.config import DataConfig

log = logging.getLogger(__name__)

PACKAGES_MAX_BYTES = 100_000_000

# The file types that the datasets library reads, and the names of its readers.
_DATASET_FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
# Files of save_to_disk: of a dataset, and of several splits.
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_ROWS = 16  # at a time, since their length is not known

# Folders of the standard library without its own sources: installed packages, tests, and the language reference, which
# is split into documents by topic instead.
_STDLIB_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """A text and its name in the corpus, which is never a path of this machine."""

    name: str
    text: str


class Corpus(ABC):
    """Documents in a fixed order.

    Args:
        kind: the value of ``data.corpus``.
        option: the option that selects the content of this corpus, for errors.
        max_bytes: stop before the first document that would exceed this many UTF-8 bytes of text.
    """

    def __init__(self, kind: str, option: str, max_bytes: int | None) -> None:
        self.kind = kind
        self.option = option
        self.max_bytes = max_bytes

    @abstractmethod
    def _read(self) -> Iterator[Document]:
        """Yield every document, including empty ones, regardless of ``max_bytes``."""

    @abstractmethod
    def estimate_bytes(self) -> int:
        """Estimate the UTF-8 bytes of the corpus."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents that are not blank, up to ``max_bytes``.

        Raises:
            UsageError: a file of the user cannot be read as text.
        """
        total = 0
        for document in self._read():
            if not document.text.strip():
                continue
            total += len(document.text.encode("utf-8"))
            if self.max_bytes is not None and total > self.max_bytes:
                return
            yield document

    def fingerprint(self) -> str:
        """Return a hash of the content, 64 hexadecimal digits that change with any name or text."""
        digest = hashlib.sha256(self.kind.encode())
        for document in self.documents():
            _add(digest, document.name.encode("utf-8", "surrogateescape"))
            _add(digest, document.text.encode("utf-8"))
        return digest.hexdigest()


def _add(digest: hashlib._Hash, content: bytes) -> None:
    """Add an item after its length, so that ``ab``, ``c`` and ``a``, ``bc`` differ."""
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


class PythonCorpus(Corpus):
    """Python source files as documents.

    Files are decoded as Python itself decodes them (PEP 263: byte-order mark, coding line, else UTF-8). Files that
    cannot be read or decoded are skipped, and their number is logged.

    Args:
        kind, max_bytes: as in :class:`Corpus`.
        files: names and paths, in order.
        first: documents that precede the files.
    """

    def __init__(
        self,
        kind: str,
        files: list[tuple[str, Path]],
        max_bytes: int | None,
        first: tuple[Document, ...] = (),
    ) -> None:
        super().__init__(kind, "data.corpus", max_bytes)
        self.files = files
        self.first = first

    def _read(self) -> Iterator[Document]:
        yield from self.first
        skipped = 0
        for name, path in self.files:
            text = read_python_source(path)
            if text is None:
                skipped += 1
            else:
                yield Document(name, text)
        if skipped:
            log.info("%s: skipped %d files that cannot be decoded as Python source", self.kind, skipped)

    def estimate_bytes(self) -> int:
        size = sum(len(document.text) for document in self.first)
        for _, path in self.files:
            size += path.stat().st_size
            if self.max_bytes is not None and size > self.max_bytes:
                return self.max_bytes
        return size


def read_python_source(path: Path) -> str | None:
    """Read a Python source as :func:`tokenize.open` does; return ``None`` if it cannot be read or decoded."""
    try:
        raw = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = io.TextIOWrapper(io.BytesIO(raw), encoding).read()
        text.encode("utf-8")
    except (OSError, SyntaxError, UnicodeError):
        return None
    return text


class TextCorpus(Corpus):
    """The user's own files.

    The fingerprint is a hash of the files' bytes, so that a later run recognizes the corpus without parsing it.

    Args:
        path: a file or a folder.
        text_column: the key or column that holds the text in ``.jsonl``, ``.csv``, and ``.parquet`` files.
        max_bytes: as in :class:`Corpus`.

    Raises:
        UsageError: the path has no file that can be read.
    """

    def __init__(self, path: str, text_column: str, max_bytes: int | None) -> None:
        super().__init__("text", PATH, max_bytes)
        self.path = path
        self.text_column = text_column
        self.files = text_files.list_text_files(path)

    def _read(self) -> Iterator[Document]:
        for name, file in self.files:
            for document_name, text in text_files.read_texts(name, file, self.text_column):
                yield Document(document_name, text)

    def estimate_bytes(self) -> int:
        size = sum(text_files.text_size(file) for _, file in self.files)
        return size if self.max_bytes is None else min(size, self.max_bytes)

    def fingerprint(self) -> str:
        settings = [
            self.kind,
            self.text_column,
            str(self.max_bytes),
            str(text_files.PLAIN_DOCUMENT_CHARACTERS),
        ]
        digest = hashlib.sha256("\0".join(settings).encode())
        for name, file in self.files:
            with os_errors(file), file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
            _add(digest, name.encode("utf-8", "surrogateescape"))
            _add(digest, content)
        return digest.hexdigest()


class DatasetsCorpus(Corpus):
    """A split of a dataset, read by Hugging Face's ``datasets`` library.

    The fingerprint is a hash of the source of the rows as the library identifies it (revision or files, and the
    subset), the split, the column, and ``max_bytes``. It does not read the rows, but those of a saved dataset.

    Args:
        path: a Hub ID, a local folder that the library reads or has saved (``save_to_disk``), or a ``.parquet``,
            ``.json``, ``.jsonl``, or ``.csv`` file.
        subset: the configuration of the dataset.
        split: the split to read.
        streaming: read rows as they are downloaded instead of downloading the dataset first.
        text_column: the column that holds the text.
        max_bytes: as in :class:`Corpus`.

    Raises:
        UsageError: there is no such dataset, subset, or split.
    """

    def __init__(
        self,
        path: str,
        subset: str | None,
        split: str,
        streaming: bool,
        text_column: str,
        max_bytes: int | None,
    ) -> None:
        super().__init__("datasets", PATH, max_bytes)
        self.path = path
        self.subset = subset
        self.split = split
        self.streaming = streaming
        self.text_column = text_column
        self._saved = self._open_saved(path)
        self._builder: Any = self._find(path, subset) if self._saved is None else None

    def _open_saved(self, path: str) -> Any:
        """Open the split of a dataset that ``save_to_disk`` wrote; ``None`` if this is none."""
        from datasets import load_from_disk

        folder = Path(path).expanduser()
        is_group = (folder / _SAVED_SPLITS).is_file()
        if not is_group and not (folder / _SAVED).is_file():
            return None
        try:
            found = load_from_disk(str(folder))
            return found[self.split] if is_group else found
        except KeyError as error:
            names = ", ".join(found)
            raise UsageError(
                f"data.split must be one of {names} for data.path={path}, got {self.split}"
            ) from error
        except Exception as error:  # whatever reading a damaged file raises
            raise self._unreadable(error) from error

    def _find(self, path: str, subset: str | None) -> Any:
        from datasets import load_dataset_builder

        kind = _DATASET_FILES.get(Path(path).suffix)
        try:
            if kind is not None and Path(path).is_file():
                return load_dataset_builder(kind, data_files={self.split: path})
            return load_dataset_builder(path, subset)
        except Exception as error:  # the library raises dozens of kinds, from ValueError to HTTP errors
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UsageError:
        given = ", ".join(filter(None, (self.path, self.subset, self.split)))
        return UsageError(
            f"data.path must be a dataset that the datasets library can read, got {given}: "
            f"{first_line(error)[:160]}"
        )

    def _read(self) -> Iterator[Document]:
        builder = self._builder
        try:
            if self._saved is not None:
                rows = self._saved
            elif self.streaming:
                rows = builder.as_streaming_dataset(split=self.split)
            else:
                builder.download_and_prepare()
                rows = builder.as_dataset(split=self.split)
            columns = rows.column_names
        except Exception as error:
            raise self._unreadable(error) from error
        wanted = [self.text_column]
        if columns is not None:
            check_columns(self.path, columns, [wanted], text_files.TEXT_COLUMN)
        values = (value for batch in rows.iter(batch_size=_ROWS) for value in batch[self.text_column])
        for number, value in enumerate(values):
            place = f"{self.path} {self.split}, row {number + 1}"
            row = Row(place, number + 1, {self.text_column: value})
            text = "" if value is None else row.text(wanted, text_files.TEXT_COLUMN)
            yield Document(f"{self.split}:{number}", text)

    def estimate_bytes(self) -> int:
        """Return the size that the dataset declares, or that of its local files; 0 if neither is known."""
        if self._saved is not None:
            size = self._saved.data.nbytes
            return size if self.max_bytes is None else min(size, self.max_bytes)
        info = (self._builder.info.splits or {}).get(self.split)
        size = 0 if info is None else info.num_bytes or 0
        if size == 0:
            files = (self._builder.config.data_files or {}).get(self.split, [])
            size = sum(text_files.text_size(Path(file)) for file in files if os.path.isfile(file))
        return size if self.max_bytes is None else min(size or self.max_bytes, self.max_bytes)

    def fingerprint(self) -> str:
        builder = self._builder
        if self._saved is not None:
            return super().fingerprint()
        parts = (
            self.kind,
            builder.dataset_name,
            builder.config_id,
            str(builder.hash),
            self.split,
            self.text_column,
            str(self.max_bytes),
        )
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _python_files(root: Path, excluded: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the ``.py`` files under ``root`` as (relative name, path), in no particular order."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in excluded and name != "__pycache__"]
        inside = Path(folder).relative_to(root).as_posix()
        for name in names:
            path = os.path.join(folder, name)  # tens of thousands of Path objects take half a second
            if name.endswith(".py") and os.path.isfile(path):
                yield (name if inside == "." else f"{inside}/{name}"), Path(path)


def python_stdlib(max_bytes: int | None = None) -> PythonCorpus:
    """Return the corpus of the standard library: its sources without tests, and the language reference (12 MB)."""
    root = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata records the machine and the folders in which this Python was built.
    files = [
        file
        for file in _python_files(root, _STDLIB_EXCLUDED)
        if not file[1].name.startswith("_sysconfigdata")
    ]
    return PythonCorpus("python_stdlib", sorted(files), max_bytes, first=_language_reference())


def _language_reference() -> tuple[Document, ...]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions of Python do not include it
        log.info("python_stdlib: this Python has no language reference (pydoc_data); reading only sources")
        return ()
    return tuple(Document(f"reference/{topic}", text) for topic, text in sorted(topics.items()))


def python_packages(max_bytes: int | None = None) -> PythonCorpus:
    """Return the corpus of all installed packages' sources, by name, up to ``max_bytes`` (``None``: 100 MB)."""
    roots = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    files: dict[str, Path] = {}
    for root in sorted(roots):
        for name, path in _python_files(Path(root), set()):
            # The files that pip writes for an editable install only hold paths of this machine.
            if not path.name.startswith("__editable__"):
                files.setdefault(name, path)
    limit = PACKAGES_MAX_BYTES if max_bytes is None else max_bytes
    return PythonCorpus("python_packages", sorted(files.items()), limit)


def open_corpus(config: DataConfig) -> Corpus:
    """Return the corpus of a configuration, without reading any document.

    Raises:
        UsageError: ``data.path`` has nothing that can be read.
    """
    if config.corpus == "python_stdlib":
        return python_stdlib(config.max_bytes)
    if config.corpus == "python_packages":
        return python_packages(config.max_bytes)
    assert config.path is not None
    if config.corpus == "datasets":
        return DatasetsCorpus(
            config.path, config.subset, config.split, config.streaming, config.text_column, config.max_bytes
        )
    assert config.corpus == "text"
    return TextCorpus(config.path, config.text_column, config.max_bytes)
