"""Small files in XSum's format."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.texts import some_texts


def articles(number: int, seed: int = 0) -> list[dict]:
    """Return different documents of two lines with summaries of a few words."""
    documents = some_texts(number, words=14, seed=seed)
    return [
        {
            "document": f"The {text.strip()}. And more.\nA line.",
            "summary": " ".join(text.split()[:4]),
            "id": i,
        }
        for i, text in enumerate(documents)
    ]


def write_xsum(folder: Path, **rows: int) -> Path:
    """Write ``<split>.jsonl`` with the given number of rows for each split; return the folder."""
    folder.mkdir(exist_ok=True)
    for split, number in (rows or {"train": 8, "validation": 5, "test": 3}).items():
        lines = (json.dumps(row) + "\n" for row in articles(number, seed=len(split)))
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
