"""The commands on a page of the documentation, as requests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from mom.config.composition import added_config_dir, composed
from mom.config.overrides import as_typed

ROOT = Path(__file__).resolve().parents[2]
_COMMAND = re.compile(r"^    (?:\S+=\S+ )?(?:\S*python run\.py|mom)(?= |$)((?:.*\\\n)*.*)$", re.MULTILINE)
_INLINE = re.compile(r"`(?:python run\.py|mom) ([^`\n]*=[^`\n]*)`")
_PLACEHOLDER = re.compile(r"…|<\w+>")


def commands(page: Path) -> list[str]:
    """Return what follows ``python run.py`` in each command of a page: indented ones, then those within a line."""
    text = page.read_text(encoding="utf-8")
    return [found.replace("\\\n", " ").strip() for found in _COMMAND.findall(text)] + _INLINE.findall(text)


def request(command: str) -> DictConfig:
    """Compose a command, with a name in place of each ``…``; of a sweep (``-m``), compose the first job.

    Raises:
        HydraException: if it is invalid.
        UsageError: if a plugin cannot be imported.
    """
    words = shlex.split(_PLACEHOLDER.sub("some", command), comments=True)
    added: list[str] = []
    if "--config-dir" in words:
        at = words.index("--config-dir")
        added = added_config_dir(ROOT / words[at + 1])
        del words[at : at + 2]
    sweeps = "-m" in words
    words = as_typed([word for word in words if word != "-m"], is_sweep=sweeps)
    if sweeps:
        parsed = OverridesParser.create().parse_overrides(words)
        words = [
            f"{one.get_key_element()}={next(one.sweep_string_iterator())}"
            if one.is_sweep_override()
            else word
            for one, word in zip(parsed, words, strict=True)
        ]
    return composed(ROOT / "conf", [*added, *words])
