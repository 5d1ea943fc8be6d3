"""The pages of the documentation: their commands are valid requests, and their code is that of the examples."""

from __future__ import annotations

import dataclasses
import pydoc
import re
import sys
from pathlib import Path

import pytest

import mom.data.controls  # noqa: F401 (registers their options)
from mom.config import bind
from mom.config.cluster import ClusterConfig
from mom.config.data import CONTROLS, DATA
from mom.config.launcher import LauncherConfig
from mom.config.optimizer import OptimizerSection
from mom.config.search import SearchConfig
from mom.config.tasks import TASKS
from mom.config.training import TrainerConfig
from mom.model.options import options_of
from tests.helpers.commands import ROOT, commands, request

DOCS = ROOT / "docs"
# The notebook's commands are records of their day; those of the cards are in tests/test_cards.py.
RECORDS = {DOCS / "lab-notebook.md", DOCS / "withdrawn-studies.md"}
PAGES = [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - RECORDS)]
# Not requests by themselves: the reader's own plugin, the beginning of a line left out, a search over an interval, the
# help, and what is refused in as little time as possible.
OTHERS = re.compile(r"plugins=\[my_|^…|interval\(|^--help|d_model=130|nonsense=1")
TUTORIAL = DOCS / "tutorial.md"
NAMING = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("variants/*.md"))]


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


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


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


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Return what stands between backticks in the prose of a page."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def fields(*sections: type) -> set[str]:
    return {field.name for section in sections for field in dataclasses.fields(section)}


def subclasses(section: type) -> set[type]:
    return {section}.union(*(subclasses(one) for one in section.__subclasses__()))


OPTIONS = {
    "model": set(options_of("model")),
    "router": {"router", *options_of("router"), "bilinear_rank"},  # the last is that of an example
    "data": fields(*DATA.values(), *CONTROLS.values()),
    "task": fields(*TASKS.values()),
    "trainer": fields(TrainerConfig),
    "optimizer": fields(*subclasses(OptimizerSection)) | {"_target_"},
    "launcher": fields(*subclasses(LauncherConfig)),
    "search": fields(SearchConfig) | {"journal"},  # search.journal is a file
    "cluster": fields(ClusterConfig),
}


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_options_and_choices_that_a_page_names_exist(page: Path) -> None:
    groups = [path.name for path in (ROOT / "conf").iterdir() if path.is_dir()]
    given = "|".join(OPTIONS)
    for span in spans(page):
        for group, option in re.findall(rf"(?<![\w./-])({given})\.(\w+)(?!\()", span):
            assert option in OPTIONS[group], f"{group}.{option} in `{span}`"
        for group, choice in re.findall(
            rf"(?<![\w./])({'|'.join(groups)})=([a-z_0-9]+(?:/[a-z_0-9]+)*)(?!/|\w|\()", span
        ):
            known = choice in ("null", "mine") or (ROOT / "conf" / group / f"{choice}.yaml").exists()
            assert known or "(" in span, f"{group}={choice} in `{span}`"


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_targets_and_names_of_a_page_exist(page: Path) -> None:
    folders = "src|conf|docs|tests|benchmarks|examples|cluster|sweeps|notebooks"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for span in spans(page):
        for path in re.findall(rf"(?<![\w/.=-])((?:{folders})/[\w./*-]*[\w*/])(?![\w<{{])", span):
            assert any(ROOT.glob(path.rstrip("/"))), f"{path} in `{span}`"
        for target in re.findall(r"^make ([\w-]+)", span):
            assert target in targets, span
        if found := re.match(r"mom(\.\w+)+", span):
            assert pydoc.locate(found[0]) is not None, span
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", prose(page)):
        assert (page.parent / link).exists(), link
