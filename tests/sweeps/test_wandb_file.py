"""The commands of a Weights & Biases sweep file, expanded by wandb's own functions, are valid requests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from mom.config import bind
from mom.config.composition import composed
from tests.sweeps.program import ROOT

FILE = yaml.safe_load((ROOT / "sweeps" / "wandb.yaml").read_text(encoding="utf-8"))


def choices(parameter: dict[str, Any]) -> list[Any]:
    """Return every value of a parameter, or the bounds of its range."""
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def commands() -> Iterator[list[str]]:
    for values in product(*(choices(parameter) for parameter in FILE["parameters"].values())):
        given = dict(zip(FILE["parameters"], ({"value": value} for value in values), strict=True))
        arguments = create_sweep_command_args({"args": given})
        macros = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"], "${program}": [FILE["program"]]}
        macros["${args_no_hyphens}"] = arguments["args_no_hyphens"]
        words = create_sweep_command(list(FILE["command"]))
        yield [part for word in words for part in macros.get(word, [word])]


@pytest.mark.parametrize("command", [next(commands()), list(commands())[-1]])
def test_what_the_agent_runs_is_a_request(command: list[str]) -> None:
    env, interpreter, program, *overrides = command

    assert (env, interpreter, (ROOT / program).is_file()) == ("/usr/bin/env", "python", True)
    config = bind(composed(ROOT / "conf", overrides))
    config.check_buildable()
    assert "wandb" in config.logger
    assert FILE["metric"]["name"] == config.callbacks["checkpoint"].arguments["monitor"]
    assert set(FILE["parameters"]) == {
        override.partition("=")[0] for override in overrides[: len(FILE["parameters"])]
    }
