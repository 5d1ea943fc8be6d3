"""Groups derived from declared options: defaults, files, help, documentation, and errors without PyTorch."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mom.config import bind
from mom.config.composition import composed
from mom.config.model import GROUPS, default_options, options_help
from mom.model.options import ModelOptions, options_of, options_table

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_holds_only_what_differs_from_the_defaults(path: Path) -> None:
    defaults = default_options(path.parent.name)
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    options.pop("defaults")

    assert set(options) <= set(defaults)
    assert [name for name in options if options[name] == defaults[name]] in ([], ["router"])


def test_a_request_and_the_model_have_the_same_defaults() -> None:
    from mom.model import MoMConfig

    made = MoMConfig()
    fields = {field.name for field in dataclasses.fields(ModelOptions)} - {"pool_specs"}
    for group in GROUPS:
        defaults = {name: value for name, value in default_options(group).items() if name in fields}
        assert {name: getattr(made, name) for name in defaults} == defaults | (
            {"vocab_size": made.vocab_size} if group == "model" else {}
        )


@pytest.mark.parametrize("overrides", [[], ["router=gru"], ["router=random"], ["model=mom_small"]], ids=str)
def test_a_composed_request_is_the_model_of_the_same_defaults(overrides: list[str]) -> None:
    """A file of a router chooses it, and a file of a size sets sizes; neither changes the recipe."""
    from mom.model import MoMConfig

    config = bind(composed(ROOT / "conf", overrides)).model_config(300)
    sizes = (
        "vocab_size",
        "max_positions",
        "d_model",
        "num_heads",
        "num_rounds",
        "top_k",
        "initializer_range",
    )
    made = MoMConfig(router=config.router, **{name: getattr(config, name) for name in sizes})
    assert config.as_mapping() == made.as_mapping()


def test_the_recipe_of_the_paper() -> None:
    config = bind(composed(ROOT / "conf", ["experiment=paper/two_phase"])).model_config(300)
    assert (config.router, config.router_dim, config.temperature, config.router_prior) == (
        "gru",
        256,
        0.2,
        "none",
    )
    assert (config.balance_coefficient, config.balance_skip) == (0.01, True)
    assert (config.skip_bias, config.skip_exploration, config.skip_trials) == (0, 0, 0)
    assert (config.num_rounds, config.top_k) == (8, 2)


def test_the_pools_may_be_a_mapping_a_list_or_the_default() -> None:
    pools = "model.pools={first: {kind: ffn, num_modules: 2}, attention: {}}"
    names = [
        [layout.name for layout in bind(composed(ROOT / "conf", line)).model_config(300).pools()]
        for line in ([], ["model.pools=[ffn,attention]"], [pools])
    ]

    assert names == [["attention", "ffn"], ["ffn", "attention"], ["first", "attention"]]


@pytest.mark.parametrize("group", GROUPS)
def test_the_help_has_a_line_for_each_option(group: str) -> None:
    text = options_help(group)
    assert all(len(line) <= 80 for line in text.splitlines())
    lines = re.sub(r"\n {35}", " ", text).splitlines()

    assert [line.split("=")[0].strip() for line in lines] == list(options_of(group))
    first = {"model": "  max_positions=1024  ", "router": "  temperature=1.0  "}[group]
    assert any(line.startswith(first) for line in lines)
    for line, option in zip(lines, options_of(group).values(), strict=True):
        assert line.endswith(f"  {option.help}")


def test_the_page_of_options_is_the_table_of_the_declarations() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")

    assert page.endswith(f"\n{options_table()}\n"), "write it again: the last lines are options_table()"


@pytest.mark.parametrize("line", ["model.top_k=99", "router.temperature=0", "model.topk=2"])
def test_an_option_out_of_range_is_rejected_without_pytorch(line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), line],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    imported = {text.rpartition("|")[2].strip() for text in done.stderr.splitlines() if "|" in text}

    assert done.returncode == 2
    assert line.partition("=")[0] in done.stderr.splitlines()[-1]
    assert "omegaconf" in imported
    assert not imported & {"torch", "lightning", "transformers", "numpy"}
