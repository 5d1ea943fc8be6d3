"""The pages of the documentation: their commands are valid requests, and their code is that of the examples."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mom.config import bind
from mom.model import registry
from tests.helpers.commands import ROOT, commands, request

DOCS = ROOT / "docs"
# The notebook's commands are records of their day; those of the cards are in tests/test_cards.py.
RECORDS = {DOCS / "lab-notebook.md", DOCS / "withdrawn-studies.md"}
PAGES = [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - RECORDS)]
# Not requests by themselves: the reader's own plugin, the beginning of a line left out, and a search over an interval.
OTHERS = re.compile(r"plugins=\[my_|^…|interval\(")
TUTORIAL = DOCS / "tutorial.md"


@pytest.fixture
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unregister the kinds that a test registers."""
    for name in [name for name in sys.modules if name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)
    kinds = dict(registry.routers), dict(registry.pools)
    yield
    for registered, before in zip((registry.routers, registry.pools), kinds, strict=True):
        for name in set(registered) - set(before):
            del registered[name]


@pytest.mark.usefixtures("without_plugins")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}")
        for command, page in {command: page for page in PAGES for command in commands(page)}.items()
        if not OTHERS.search(command)
    ],
)
def test_a_command_of_a_page_is_a_request(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)  # some ask for prompts, in a terminal

    assert bind(request(command)).run_dir


def test_the_commands_are_found() -> None:
    assert len(commands(TUTORIAL)) >= 4
    assert len(commands(DOCS / "extending.md")) >= 5


@pytest.mark.parametrize("name", ["bilinear_router", "causal_conv"])
def test_the_page_shows_the_example(name: str) -> None:
    code = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")

    assert f"```python\n{code}```\n" in (DOCS / "extending.md").read_text(encoding="utf-8"), (
        f"copy examples/{name}.py into docs/extending.md again"
    )


def test_the_tutorial_uses_only_what_it_made() -> None:
    made: set[str] = set()
    for command in commands(TUTORIAL):
        config = bind(request(command))
        for given in (config.init, config.ckpt):
            assert given is None or Path(given).parents[1].as_posix() in made, command
        made.add(config.run_dir)


def test_the_tutorial_ends_with_the_readers_own_text_and_a_picture() -> None:
    config = bind(request(commands(TUTORIAL)[-1]))

    assert config.task.name == "analyze" and config.data.corpus == "text"
    assert f"{config.run_dir}/report.html" in TUTORIAL.read_text(encoding="utf-8")
