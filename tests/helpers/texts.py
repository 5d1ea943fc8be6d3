"""Small corpora for the tests of the data pipeline."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from mom.config import DataConfig

WORDS = ("module", "router", "assembly", "round", "token", "anchor", "pool", "skip", "naïve", "模块", "λ")


def some_texts(number: int, words: int = 60, seed: int = 0) -> list[str]:
    """Return different texts of random words."""
    draw = random.Random(seed)
    return [f"{i}: " + " ".join(draw.choices(WORDS, k=words)) + "\n" for i in range(number)]


def write_jsonl(path: Path, texts: Iterable[str]) -> Path:
    """Write one text on each line under the key ``text``."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def text_config(folder: Path, texts: list[str], **changes: object) -> DataConfig:
    """Write texts to a folder and return the configuration that prepares them in a cache next to them."""
    folder.mkdir(exist_ok=True)
    path = write_jsonl(folder / "a.jsonl", texts)
    settings: dict[str, object] = {
        "corpus": "text",
        "path": str(path),
        "cache_dir": str(folder / "cache"),
        "tokenizer_vocab_size": 300,
        "validation_fraction": 0.2,
    }
    return DataConfig(**(settings | changes))


def cache_contents(config: DataConfig) -> list[str]:
    """Return the names in the cache, without locks."""
    return sorted(path.name for path in Path(str(config.cache_dir)).iterdir() if path.suffix != ".lock")


def never(*_: object, **__: object) -> None:
    """Fail: a stand-in for a function that must not be called."""
    raise AssertionError("the cache was not used")
