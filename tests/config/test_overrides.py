"""Overrides as they are typed: any text, Python's dictionaries, Hydra's name of the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from omegaconf import OmegaConf

from mom.config import bind
from mom.config.composition import composed
from mom.config.overrides import as_typed, quoted, without_stages, written
from mom.errors import UsageError

CONF = Path(__file__).resolve().parents[2] / "conf"
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
AWKWARD = st.text(
    st.sampled_from(["\\", "'", '"', "$", "{", "}", "a", ",", "[", "(", "=", " ", "\n"]), max_size=9
)


def read(value: str) -> Any:
    """The value that an option has after Hydra and OmegaConf have read it."""
    parsed = OverridesParser.create().parse_override(f"option={value}")
    return OmegaConf.to_container(OmegaConf.create({"option": parsed.value()}), resolve=True)["option"]


@settings(max_examples=50, deadline=None)
@given(TEXT | AWKWARD)
def test_any_text_is_read_as_it_was_quoted(text: str) -> None:
    if text != "???":  # OmegaConf's marker of a missing value
        assert read(quoted(text)) == text


def plain_data() -> SearchStrategy[Any]:
    numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | numbers | AWKWARD.filter(lambda text: text != "???")
    names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(
        lambda name: name not in ("null", "true", "false")
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
    )


@settings(max_examples=50, deadline=None)
@given(plain_data())
def test_plain_data_is_read_as_it_was_written(value: Any) -> None:
    assert read(written(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "def main(args):",
        "a, b",
        "[x]",
        "{a: 1",
        "1",
        "true",
        "it's",
        '"Hi," she said',
        "${x}",
        "=",
        " a",
        "",
        "a\nb",
    ],
)
def test_a_prompt_is_taken_as_it_was_typed(text: str) -> None:
    for option in ("prompt", "task.prompt"):
        line = as_typed(["task=generate", "init=x", f"{option}={text}"])
        assert bind(composed(CONF, line)).task.prompt == text  # type: ignore[attr-defined]


def test_a_prompt_within_quotes_of_hydra_is_what_they_hold() -> None:
    assert as_typed(['prompt="a, b"', "prompt='x'", "prompt=null"]) == [
        'prompt="a, b"',
        "prompt='x'",
        "prompt=null",
    ]
    assert as_typed(["prompt=a,b"], is_sweep=True) == ["prompt=a,b"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("model={'top_k': 2, 'pools': None}", ["model.top_k=2", "model.pools=null"]),
        ("optimizer={'betas': [0.9, 0.95]}", ["optimizer.betas=[0.9,0.95]"]),
        ("callbacks={'top_k': {'start': 1.0}}", ["callbacks.top_k={start:1.0}"]),
        ("model={top_k: 2}", ["model={top_k: 2}"]),
        ("data.path=my texts (new)/", ["data.path='my texts (new)/'"]),
        ("hydra.run.dir=out/${now:%Y}", ["run_dir=out/${now:%Y}"]),
        ('hydra.run.dir="."', []),
        ("seed=[1", ["seed=[1"]),
        ("seed=1,2", ["seed=1,2"]),
        ("seed=", ["seed="]),
        ("seed", ["seed"]),
        ("~callbacks.throughput", ["~callbacks.throughput"]),
    ],
)
def test_what_hydra_would_not_read_is_converted(given: str, expected: list[str]) -> None:
    assert as_typed([given]) == expected


def test_the_agents_parameters_reach_the_request() -> None:
    config = bind(composed(CONF, as_typed(["model={'top_k': 1}", "callbacks={'top_k': {'start': 1.0}}"])))

    assert config.model["top_k"] == 1
    assert config.callbacks["top_k"].arguments["start"] == 1.0
    assert config.callbacks["top_k"].target == "mom.callbacks.Schedule"


def test_two_names_for_the_run_directory_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"^hydra.run.dir cannot be combined with run_dir: both name"):
        as_typed(["hydra.run.dir=a", "run_dir=b"])


def test_options_without_effect_on_a_plain_model_are_found() -> None:
    given = ["router=gru", "router.temperature=0.5", "model.top_k=2", "+callbacks.gumbel_noise.start=1"]
    others = ["model=gpt2_tiny", "model.d_model=16", "callbacks.figures=null", "trainer.max_steps=2"]

    assert without_stages([*others, *given]) == given
