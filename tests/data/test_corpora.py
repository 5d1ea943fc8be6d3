"""Corpora: order, names, skipped files, and the fingerprint."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mom.config import DataConfig
from mom.data import corpora
from mom.data.corpora import Document, PythonCorpus, TextCorpus, open_corpus, python_packages, python_stdlib
from mom.data.prepare import prepare
from mom.errors import UsageError
from tests.helpers.texts import some_texts, write_jsonl


def test_stdlib_is_real_text_in_a_fixed_order() -> None:
    documents = list(python_stdlib(max_bytes=3_000_000).documents())
    assert documents == list(python_stdlib(max_bytes=3_000_000).documents())
    names = [document.name for document in documents]
    assert len(names) == len(set(names)) > 50
    reference = [name for name in names if name.startswith("reference/")]
    assert names == sorted(reference) + sorted(set(names) - set(reference))
    texts = {document.name: document.text for document in documents}
    assert "class OrderedDict" in texts["collections/__init__.py"]
    assert any("comprehension" in texts[name] for name in reference)


def test_stdlib_excludes_tests_packages_and_paths_of_this_machine() -> None:
    names = [name for name, _ in python_stdlib().files]
    assert "json/decoder.py" in names
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "__pycache__",
        "pydoc_data",
    }
    assert not any("_sysconfigdata" in name or name.startswith("/") or sys.prefix in name for name in names)
    assert names == sorted(names)


def test_stdlib_without_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert python_stdlib().first == ()


def test_packages_are_those_installed() -> None:
    corpus = python_packages()
    names = [name for name, _ in corpus.files]
    assert "torch/nn/functional.py" in names
    assert names == sorted(names)
    assert not any(Path(name).name.startswith("__editable__") or Path(name).is_absolute() for name in names)
    assert corpus.max_bytes == corpora.PACKAGES_MAX_BYTES
    assert corpus.estimate_bytes() <= corpora.PACKAGES_MAX_BYTES


def test_python_sources_are_decoded_as_python_does(tmp_path: Path) -> None:
    contents = {
        "bom.py": b"\xef\xbb\xbfx = 1\r\n",
        "coded.py": "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"),
        "not_utf8.py": b"x = '\xe9'\n",
        "unknown.py": b"# coding: no-such-codec\n",
        "empty.py": b" \n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [(name, tmp_path / name) for name in [*contents, "vanished.py"]]
    documents = list(PythonCorpus("python_packages", files, None).documents())
    assert documents == [
        Document("bom.py", "x = 1\n"),
        Document("coded.py", "# -*- coding: latin-1 -*-\nx = 'é'\n"),
    ]


@pytest.mark.parametrize(("max_bytes", "kept"), [(None, 3), (9, 3), (8, 2), (6, 2), (5, 1), (1, 0)])
def test_max_bytes_stops_before_the_document_that_does_not_fit(
    tmp_path: Path, max_bytes: int | None, kept: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "λx", "", "end"])
    documents = list(TextCorpus(str(path), "text", max_bytes).documents())
    assert [document.text for document in documents] == ["one", "λx", "end"][:kept]


def test_text_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def fingerprint(
        folder: str, texts: list[str], name: str = "a.jsonl", max_bytes: int | None = None
    ) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        write_jsonl(tmp_path / folder / name, texts)
        return TextCorpus(str(tmp_path / folder), "text", max_bytes).fingerprint()

    texts = some_texts(5)
    first = fingerprint("one", texts)
    assert first == fingerprint("two", texts)
    assert first == TextCorpus(str(tmp_path / "one" / "a.jsonl"), "text", None).fingerprint()
    others = [
        fingerprint("three", [*texts[:4], "changed"]),
        fingerprint("four", texts, name="b.jsonl"),
        fingerprint("five", texts, max_bytes=100),
    ]
    assert len({first, *others}) == 4


def test_python_fingerprint_follows_names_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("x = 1\n")

    def fingerprint(name: str) -> str:
        return PythonCorpus("python_packages", [(name, path)], None).fingerprint()

    first = fingerprint("a.py")
    assert fingerprint("a.py") == first
    assert fingerprint("b.py") != first
    path.write_text("x = 2\n")
    assert fingerprint("a.py") != first


def test_corpus_of_a_config(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one"])
    corpus = open_corpus(DataConfig(corpus="text", path=str(path)))
    assert list(corpus.documents()) == [Document("a.jsonl:1", "one")]
    assert open_corpus(DataConfig()).kind == "python_stdlib"
    assert open_corpus(DataConfig(corpus="python_packages", max_bytes=7)).max_bytes == 7
    with pytest.raises(UsageError, match=r"data\.path must be .*missing"):
        open_corpus(DataConfig(corpus="text", path=str(tmp_path / "missing")))


TEXTS = ["", *some_texts(12)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder that the datasets library can read, and an empty cache for the library."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub"))
    (tmp_path / "set").mkdir()
    table = pyarrow.table({"text": TEXTS, "id": list(range(len(TEXTS)))})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    write_jsonl(tmp_path / "lines.jsonl", TEXTS)
    return tmp_path


def config(folder: Path, path: str = "set", **changes) -> DataConfig:
    groups = {"corpus": "datasets", "path": str(folder / path), "cache_dir": str(folder / "cache")}
    return DataConfig(**(groups | {"tokenizer_vocab_size": 300, "validation_fraction": 0.3} | changes))


@pytest.mark.parametrize("path", ["set", "set/train.parquet", "lines.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_is_a_document(folder, path, streaming):
    corpus = open_corpus(config(folder, path, streaming=streaming))
    assert [document.text for document in corpus.documents()] == TEXTS[1:]
    assert corpus.estimate_bytes() >= sum(map(len, TEXTS))


def test_fingerprint_depends_on_the_column_and_size_but_not_on_streaming(folder):
    first = open_corpus(config(folder)).fingerprint()
    assert open_corpus(config(folder, streaming=True)).fingerprint() == first
    assert open_corpus(config(folder, max_bytes=1_000)).fingerprint() != first
    assert open_corpus(config(folder, "lines.jsonl")).fingerprint() != first


@pytest.mark.parametrize("is_group", [False, True])
def test_a_saved_dataset_is_read_and_identified_by_its_rows(folder, is_group):
    def save(name: str, texts: list[str]) -> None:
        rows = datasets.Dataset.from_dict({"text": texts})
        (datasets.DatasetDict(train=rows, dev=rows.select([1])) if is_group else rows).save_to_disk(
            folder / name
        )

    save("saved", TEXTS)
    save("same", TEXTS)
    save("other", [*TEXTS, "more"])
    corpora_found = [open_corpus(config(folder, name)) for name in ("saved", "same", "other")]
    assert [document.text for document in corpora_found[0].documents()] == TEXTS[1:]
    first, same, other = (corpus.fingerprint() for corpus in corpora_found)
    assert first == same != other
    assert corpora_found[0].estimate_bytes() >= sum(map(len, TEXTS))
    if is_group:
        assert [d.text for d in open_corpus(config(folder, "saved", split="dev")).documents()] == [TEXTS[1]]
        with pytest.raises(
            UsageError, match=r"^data.split must be one of train, dev for data.path=.*, got test$"
        ):
            open_corpus(config(folder, "saved", split="test"))
    with pytest.raises(UsageError, match=r"has no column body; its columns are text"):
        prepare(config(folder, "saved", text_column="body"))
    next((folder / "saved").rglob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"^data.path must be a dataset that the datasets library can read"):
        list(open_corpus(config(folder, "saved")).documents())


def test_a_dataset_gives_the_tokens_of_the_same_text(folder):
    ours = prepare(config(folder, streaming=True))
    texts = prepare(config(folder, "lines.jsonl", corpus="text"))
    assert ours.train.tokens.tolist() == texts.train.tokens.tolist()
    assert ours.folder.name.startswith("datasets-")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere"}, r"data\.path must be a dataset .*nowhere"),
        ({"text_column": "body"}, r"data\.text_column: .* has no column body; its columns are text, id"),
        ({"text_column": "id"}, r"data\.text_column: column id must hold strings, got int in "),
        ({"split": "test"}, r"data\.path must be .*test"),
    ],
)
def test_missing_data_is_rejected(folder, streaming, changes, message):
    with pytest.raises(UsageError, match=message):
        prepare(config(folder, **{"streaming": streaming, **changes}))
    assert not list((folder / "cache").glob("*.bin"))
