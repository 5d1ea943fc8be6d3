"""Small corpora for the tests of the data pipeline."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

WORDS = ("module", "router", "assembly", "round", "token", "anchor", "pool", "skip", "naïve", "模块", "λ")


def some_texts(number: int, words: int = 60, seed: int = 0) -> list[str]:
    """Texts of random words, all different."""
    draw = random.Random(seed)
    return [f"{i}: " + " ".join(draw.choices(WORDS, k=words)) + "\n" for i in range(number)]


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    """Write one text on each line under the key ``text``."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
