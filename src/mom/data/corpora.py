"""Corpora: documents in a fixed order, streamed, with a fingerprint of their content.

Four kinds: the sources and the language reference of the running Python (``python_stdlib``), the sources of
all installed packages (``python_packages``), the user's own files (``text``), and a data set of the Hub or of
local files (``datasets``). The first two need no download and ship nothing: the Python that runs the program
carries them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import site
import sysconfig
import tokenize
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom.data import text as text_files
from mom.errors import RequestError

if TYPE_CHECKING:
    from mom.config import DataConfig

log = logging.getLogger(__name__)

PACKAGES_MAX_BYTES = 100_000_000

# Files that the datasets library reads, and its name for how.
_DATASET_FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_ROWS = 256

# Not prose of the standard library: installed packages, tests, caches, and the generated table of topics,
# which is read as documents of its own.
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """One text and the name under which the corpus knows it (never a path of this machine)."""

    name: str
    text: str


class Corpus(ABC):
    """Documents in a fixed order.

    Args:
        kind: the corpus's name in ``data.corpus``.
        option: the option that a user would change if this corpus will not do.
        max_bytes: stop before the first document that would bring the text above this many UTF-8 bytes.
    """

    def __init__(self, kind: str, option: str, max_bytes: int | None) -> None:
        self.kind = kind
        self.option = option
        self.max_bytes = max_bytes

    @abstractmethod
    def _read(self) -> Iterator[Document]:
        """Yield every document, empty ones too, without regard to ``max_bytes``."""

    @abstractmethod
    def estimate_bytes(self) -> int:
        """Estimate the UTF-8 bytes of the corpus, for a progress bar."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents that hold more than white space, up to ``max_bytes``.

        Raises:
            RequestError: a file of the user's cannot be read as text.
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
        """Identify the content: 64 hexadecimal digits that change when a name or a text does."""
        digest = hashlib.sha256(self.kind.encode())
        for document in self.documents():
            _add(digest, document.name.encode("utf-8", "surrogateescape"))
            _add(digest, document.text.encode("utf-8"))
        return digest.hexdigest()


def _add(digest: hashlib._Hash, content: bytes) -> None:
    """Add one item; its length goes first, so that ``ab``, ``c`` and ``a``, ``bc`` differ."""
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


class PythonCorpus(Corpus):
    """Python source files, each one document, and whatever documents come before them.

    A file is decoded as Python itself would (PEP 263: byte-order mark, coding line, else UTF-8). Files that
    cannot be decoded or read are left out, and their number is logged.

    Args:
        kind: as in :class:`Corpus`.
        files: (name, path) in the order wanted.
        max_bytes: as in :class:`Corpus`.
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
            log.info("%s: %d files left out, not decodable as Python source", self.kind, skipped)

    def estimate_bytes(self) -> int:
        size = sum(len(document.text) for document in self.first)
        for _, path in self.files:
            size += path.stat().st_size
            if self.max_bytes is not None and size > self.max_bytes:
                return self.max_bytes
        return size


def read_python_source(path: Path) -> str | None:
    """Read a Python source by :func:`tokenize.open`'s rule; ``None`` if it cannot be."""
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

    Its fingerprint is that of the files' bytes, so that a later start recognizes the corpus without parsing.

    Args:
        path: a file or a folder.
        text_column: the key or column that holds the text in ``.jsonl`` and ``.parquet`` files.
        max_bytes: as in :class:`Corpus`.

    Raises:
        RequestError: nothing there that could be read.
    """

    def __init__(self, path: str, text_column: str, max_bytes: int | None) -> None:
        super().__init__("text", text_files.OPTION, max_bytes)
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
            try:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").digest()
            except OSError as error:
                raise RequestError(self.option, file, f"a file that can be read: {error.strerror}") from error
            _add(digest, name.encode("utf-8", "surrogateescape"))
            _add(digest, content)
        return digest.hexdigest()


class DatasetsCorpus(Corpus):
    """One split of a data set, by Hugging Face's ``datasets`` library.

    Its fingerprint is that of where the rows come from as the library knows it (revision or files, and the
    subset), the split, the column and ``max_bytes``; the rows themselves are not read for it.

    Args:
        path: a Hub id, a local folder that the library reads, or a ``.parquet``, ``.json``, ``.jsonl`` or
            ``.csv`` file.
        subset: the data set's configuration.
        split: of the data set.
        streaming: read rows as they are downloaded instead of downloading everything first.
        text_column: the column that holds the text.
        max_bytes: as in :class:`Corpus`.

    Raises:
        RequestError: no such data set, subset or split.
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
        super().__init__("datasets", "data.path", max_bytes)
        self.path = path
        self.subset = subset
        self.split = split
        self.streaming = streaming
        self.text_column = text_column
        self._builder = self._find(path, subset)

    def _find(self, path: str, subset: str | None) -> Any:
        from datasets import load_dataset_builder

        kind = _DATASET_FILES.get(Path(path).suffix)
        try:
            if kind is not None and Path(path).is_file():
                return load_dataset_builder(kind, data_files={self.split: path})
            return load_dataset_builder(path, subset)
        except Exception as error:  # the library raises dozens of kinds, from ValueError to HTTP errors
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> RequestError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        given = ", ".join(map(str, filter(None, (self.path, self.subset, self.split))))
        return RequestError(
            "data.path", f"{given} ({reason[:160]})", "a data set that the datasets library can read"
        )

    def _read(self) -> Iterator[Document]:
        builder = self._builder
        try:
            if self.streaming:
                rows = builder.as_streaming_dataset(split=self.split)
            else:
                builder.download_and_prepare()
                rows = builder.as_dataset(split=self.split)
            columns = rows.column_names
        except Exception as error:
            raise self._refusal(error) from error
        if columns is not None and self.text_column not in columns:
            raise RequestError(
                "data.text_column", f"{self.text_column} (not in {self.path})", f"one of {', '.join(columns)}"
            )
        number = 0
        for batch in rows.iter(batch_size=_ROWS):
            for text in batch[self.text_column]:
                if not isinstance(text, str | types.NoneType):
                    raise RequestError(
                        "data.text_column", f"{self.text_column} ({type(text).__name__})", "a column of text"
                    )
                yield Document(f"{self.split}:{number}", text or "")
                number += 1

    def estimate_bytes(self) -> int:
        """What the data set says of itself, or its local files' sizes; 0 where neither is known."""
        info = (self._builder.info.splits or {}).get(self.split)
        size = 0 if info is None else info.num_bytes or 0
        if size == 0:
            files = (self._builder.config.data_files or {}).get(self.split, [])
            size = sum(text_files.text_size(Path(file)) for file in files if os.path.isfile(file))
        return size if self.max_bytes is None else min(size or self.max_bytes, self.max_bytes)

    def fingerprint(self) -> str:
        builder = self._builder
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


def _python_files(root: Path, left_out: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the ``.py`` files under ``root`` as (relative name, path), in no particular order."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in left_out and name != "__pycache__"]
        inside = Path(folder).relative_to(root).as_posix()
        for name in names:
            path = os.path.join(
                folder, name
            )  # a Path for each of tens of thousands of files takes half a second
            if name.endswith(".py") and os.path.isfile(path):
                yield (name if inside == "." else f"{inside}/{name}"), Path(path)


def python_stdlib(max_bytes: int | None = None) -> PythonCorpus:
    """The standard library's sources, without its tests, and the language reference (about 12 MB)."""
    root = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata records how this Python was built, on which machine and in which folders.
    files = [
        file
        for file in _python_files(root, _STDLIB_LEFT_OUT)
        if not file[1].name.startswith("_sysconfigdata")
    ]
    return PythonCorpus("python_stdlib", sorted(files), max_bytes, first=_language_reference())


def _language_reference() -> tuple[Document, ...]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions of Python leave it out
        log.info("python_stdlib: this Python has no language reference (pydoc_data); only sources are read")
        return ()
    return tuple(Document(f"reference/{topic}", text) for topic, text in sorted(topics.items()))


def python_packages(max_bytes: int | None = None) -> PythonCorpus:
    """The sources of all installed packages, by name, up to ``max_bytes`` (``None``: 100 MB)."""
    roots = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    files: dict[str, Path] = {}
    for root in sorted(roots):
        for name, path in _python_files(Path(root), set()):
            # What pip writes for an editable install holds nothing but paths of this machine.
            if not path.name.startswith("__editable__"):
                files.setdefault(name, path)
    limit = PACKAGES_MAX_BYTES if max_bytes is None else max_bytes
    return PythonCorpus("python_packages", sorted(files.items()), limit)


def open_corpus(config: DataConfig) -> Corpus:
    """Find the corpus that ``config`` names. Reads no document yet.

    Raises:
        RequestError: ``data.path`` is missing, or has nothing that could be read.
    """
    if config.corpus == "python_stdlib":
        return python_stdlib(config.max_bytes)
    if config.corpus == "python_packages":
        return python_packages(config.max_bytes)
    if config.corpus == "datasets":
        assert config.path is not None
        return DatasetsCorpus(
            config.path, config.subset, config.split, config.streaming, config.text_column, config.max_bytes
        )
    if config.corpus != "text":
        raise RequestError(
            "data.corpus", config.corpus, "one of python_stdlib, python_packages, text, datasets"
        )
    if config.path is None:
        raise RequestError("data.path", "null", "a file or folder of text, which data.corpus=text needs")
    return TextCorpus(config.path, config.text_column, config.max_bytes)
