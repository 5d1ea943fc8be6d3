"""The reproduction cards of docs/variants: rendered from one file, whose tests, commands and numbers are true."""

from __future__ import annotations

import functools
import importlib
import re
import runpy
from typing import Any

import pytest

from mom.config import bind
from mom.config.composition import composed
from mom.model import MoMConfig
from tests.helpers.commands import ROOT, request
from tests.model.test_variants import CASES, STACK

FOLDER = ROOT / "docs" / "variants"
RENDER = runpy.run_path(str(FOLDER / "render.py"))
CARDS: dict[str, dict[str, Any]] = RENDER["load"]()
TESTS = [(name, test) for name, card in CARDS.items() for test in card["tests"]]
RESULTS = [
    (name, measured)
    for name, card in CARDS.items()
    for measured in (card["laptop"], card.get("earlier"))
    if measured is not None and measured["result"] is not None
]


@functools.cache
def preset(name: str) -> MoMConfig:
    """Return the model of a card's preset."""
    return bind(composed(ROOT / "conf", CARDS[name]["preset"])).model_config(300)


def kinds(config: MoMConfig) -> list[str]:
    """Return the kinds of a model's pools."""
    return [layout.kind.name for layout in config.pools()] if config.num_stages else []


def test_the_pages_are_those_of_the_cards() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}

    assert written == RENDER["pages"](), "write them again: python docs/variants/render.py"


def test_every_variant_has_a_card() -> None:
    names = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    variants = {name for name in names if not name.startswith(("gpt2_", "mom_"))}

    assert variants | {"plain", "mom", "shared_kv_attention"} == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_complete(name: str) -> None:
    card = CARDS[name]

    assert all(
        isinstance(card[field], str)
        for field in ("title", "paper", "link", "read", "rule", "equation", "code")
    )
    assert card["deviations"] and all(isinstance(text, str) for text in card["deviations"])
    assert card["tests"]


@pytest.mark.parametrize(("name", "test"), TESTS)
def test_a_named_test_exists(name: str, test: dict[str, str]) -> None:
    path, function = test["test"].split("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    marks = getattr(getattr(module, function), "pytestmark", [])
    cases = {
        case for mark in marks if mark.name == "parametrize" for case in mark.args[1] if isinstance(case, str)
    }
    source = (ROOT / path).read_text(encoding="utf-8")

    assert "case" not in test or test["case"] in cases
    assert test.get("within", "") in source
    assert "gradients" not in test or f"atol={test['gradients']} * float(" in source


@pytest.mark.parametrize("name", CARDS)
def test_the_tested_case_has_the_options_of_the_preset(name: str) -> None:
    """Sizes aside, and but for what the card says."""
    config = preset(name)
    for case in (
        {test["case"] for test in CARDS[name]["tests"] if "case" in test} if config.num_stages else ()
    ):
        options = {
            option: value
            for option, value in (STACK | CASES[case][0]).items()
            if not option.startswith("num_") and option != "capacity"
        }
        differing = {option: value for option, value in options.items() if getattr(config, option) != value}

        assert differing == CARDS[name].get("differs", {})


@pytest.mark.parametrize(("scale", "depth", "width"), [("paper_scale", 12, 768), ("laptop", 8, 32)])
@pytest.mark.parametrize("name", CARDS)
def test_a_command_has_the_scale_that_it_says(name: str, scale: str, depth: int, width: int) -> None:
    config = bind(request(CARDS[name][scale]["command"].removeprefix("python run.py ")))
    config.check_buildable()
    model = config.model_config(300)

    assert (model.graph_depth, model.d_model) == (depth, width)
    assert kinds(model) == kinds(preset(name))


@pytest.mark.parametrize(("name", "measured"), RESULTS)
def test_a_number_is_in_its_source(name: str, measured: dict[str, Any]) -> None:
    def plain(line: str) -> str:
        return re.sub(r" *\| *", "|", line).replace("-", "−")

    where = measured["source"]
    page = [plain(line) for line in (ROOT / "docs" / where["page"]).read_text(encoding="utf-8").splitlines()]
    lines = [plain(line) for line in where["lines"]]

    assert set(lines) <= set(page)
    cited = set(re.findall(r"−?\d+\.\d+", measured["result"]))
    assert cited and cited <= {number for line in lines for number in re.findall(r"−?\d+\.\d+", line)}
