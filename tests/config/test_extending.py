"""docs/extending.md contains the examples verbatim, and its commands are valid requests."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mom.config import bind
from mom.config.composition import composed
from mom.model import registry

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    python run\.py ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def without_plugins() -> Iterator[None]:
    """Unregister the kinds that a test registers."""
    kinds = dict(registry.routers), dict(registry.pools)
    yield
    for registered, before in zip((registry.routers, registry.pools), kinds, strict=True):
        for name in set(registered) - set(before):
            del registered[name]


@pytest.mark.parametrize("name", ["bilinear_router", "causal_conv"])
def test_the_page_shows_the_example(name: str) -> None:
    code = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")

    assert f"```python\n{code}```\n" in PAGE, f"copy examples/{name}.py into docs/extending.md again"


@pytest.mark.parametrize("command", [command for command in COMMANDS if "my_package" not in command])
def test_a_command_of_the_page_is_a_request(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = shlex.split(command.replace("\\\n", " "))
    for name in [name for name in sys.modules if name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)

    assert bind(composed(ROOT / "conf", overrides)).task.name == "pretrain"
