"""Small files in the format of GLUE's download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HEADERS = {
    name: tuple(columns.split(", "))
    for name, columns in {
        "sst2": "sentence, label",
        "mrpc": "Quality, #1 ID, #2 ID, #1 String, #2 String",
        "stsb": "index, genre, filename, year, old_index, source1, source2, sentence1, sentence2, score",
        "qqp": "id, qid1, qid2, question1, question2, is_duplicate",
        "mnli": "index, promptID, pairID, genre, sentence1_binary_parse, sentence2_binary_parse, "
        "sentence1_parse, sentence2_parse, sentence1, sentence2, label1, gold_label",
        "qnli": "index, question, sentence, label",
        "rte": "index, sentence1, sentence2, label",
        "wnli": "index, sentence1, sentence2, label",
    }.items()
}
FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
TEXTS = {
    "mrpc": ("#1 String", "#2 String"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
}
LABELS = {"stsb": "score", "mrpc": "Quality", "qqp": "is_duplicate", "mnli": "gold_label"}
NAMES = {
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "stsb": ("0.000", "2.500", "5.000"),
}


def sentences(number: int) -> list[str]:
    """Return texts that are hard to parse: quotes, an unpaired quote, Unicode line breaks, other scripts."""
    odd = ('He said "yes', "a\u2028b", "naïve 模块", "it 's , fine . ", '"quoted"')
    return [f"{number}: {odd[number % len(odd)]}", f"{number} again"]


def write_glue(root: Path, name: str, rows: dict[str, int] | None = None) -> Path:
    """Write ``train``, ``dev``, and ``test`` of a task, with alternating labels; return the task's folder."""
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    counts = rows or {"train": 6, "dev": 4, "test": 3}
    for split, count in counts.items():
        sets = ("_matched", "_mismatched") if name == "mnli" and split != "train" else ("",)
        for suffix in sets:
            lines = [_row(name, split, number) for number in range(count)]
            _write(folder / f"{split}{suffix}.tsv", lines, _header(name, split))
    return folder


def _header(name: str, split: str) -> Sequence[str] | None:
    if name == "cola":
        return None if split != "test" else ("index", "sentence")
    if split != "test":
        return HEADERS[name]
    if name in ("sst2", "mrpc"):
        return ("index", "sentence") if name == "sst2" else ("index", *HEADERS[name][1:])
    return [column for column in HEADERS[name] if column not in (LABELS.get(name, "label"), "label1")]


def _row(name: str, split: str, number: int) -> list[str]:
    names = NAMES.get(name, ("0", "1"))
    label = names[number % len(names)]
    first, second = sentences(number)
    if name == "cola" and split != "test":
        return ["gj04", label, "*" if label == "0" else "", first]
    columns = _header(name, split)
    texts = TEXTS.get(name, ("sentence1", "sentence2") if name not in ("cola", "sst2") else ("sentence",))
    values = dict(zip(texts, (first, second), strict=False)) | {LABELS.get(name, "label"): label}
    return [values.get(column, str(number)) for column in columns]


def _write(path: Path, rows: list[list[str]], header: Sequence[str] | None) -> None:
    lines = ["\t".join(row) for row in ([list(header)] if header else []) + rows]
    # MRPC's files have a byte-order mark and Windows line endings.
    windows = "MRPC" in str(path)
    text = ("\ufeff" if windows else "") + ("\r\n" if windows else "\n").join(lines) + "\n"
    path.write_bytes(text.encode("utf-8"))
