"""The three numbers at the top of the report, and the run's own validation beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mom.analysis.choices import Choices
from mom.analysis.report.headlines import OwnValidation, headlines, own_validation
from mom.analysis.statistics import Depths
from mom.analysis.traces import Header
from mom.metrics.choice_value import ChoiceValue
from tests.helpers.models import small_config

FACTS = {
    "val/perplexity": 20.1,
    "depth/graph": 7,
    "depth/effective": 6.5,
    "depth/weighted": 6.25,
    "routing/attention/skip_share": 0.25,
    "routing/ffn/skip_share": 0.5,
}


def measured(values: list[ChoiceValue], own: OwnValidation | None = None, **changes: Any) -> list[Any]:
    header = Header(small_config(**changes).to_dict(), "a.ckpt", "a text, validation", [0])
    depths = Depths(tokens=100, predicted=90, loss=3.0, mean={}, distribution={}, by_frequency={}, by_loss={})
    choices = Choices(skips={}, changes={}, dependence=[], depths=[], values=values)
    return headlines(FACTS, header, depths, choices, own)


def test_the_loss_stands_beside_the_one_of_the_run() -> None:
    own = OwnValidation(3.104, 300, "on all 5,000 tokens of a corpus, validation")
    loss, depth, _ = measured([], own, top_k=1)
    assert loss.value == "3.000 nats/token"
    assert "On 90 predicted tokens of a text, validation" in loss.note
    assert "own validation at step 300: 3.104, on all 5,000 tokens of a corpus, validation." in loss.note
    assert depth.value == "6.50 of 7 blocks" and "25.0% (attention) and 50.0% (FFN)" in depth.note


def test_a_depth_that_cannot_differ_is_not_the_headline() -> None:
    _, depth, skip = measured([], top_k=2, skip_rule="share")
    assert (depth.value, depth.label) == ("6.25 of 7 blocks", "weighted depth of a token")
    assert skip.label == "SKIP's share of the assignments"


@pytest.mark.parametrize(("error", "clear"), [(0.01, True), (0.2, False), (float("nan"), None)])
def test_the_value_of_the_choice_says_if_it_is_nothing(error: float, clear: bool | None) -> None:
    values = [
        ChoiceValue("ffn", None, "permuted", 9.0, 0.1, 0.5),
        ChoiceValue(None, None, "permuted", 0.25, error, 0.5),
    ]
    value = measured(values)[2]
    assert value.value.startswith("+0.2500") and ("±" in value.value) is (clear is not None)
    assert ("cannot be told from 0" in value.note) is (clear is False)


def test_the_own_validation_is_that_of_the_checkpoints_step(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert own_validation(str(path), 20) is None
    (tmp_path / "run" / "metrics.csv").write_text("step,val/loss\n9,4.5\n19,3.25\n29,3.0\n")
    assert own_validation(str(path), 20) == (3.25, 20, "on all tokens of its data, validation")
    request = {"task": {"name": "pretrain"}, "trainer": {"limit_val_batches": 3}}
    request["data"] = {"kind": "language_modeling", "corpus": "python_stdlib"}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(request))
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"data/validation_tokens": 5000}))
    found = own_validation(str(path), 20)
    assert found is not None
    assert found.measured_on == "on at most 3 batches of 5,000 tokens of python_stdlib, validation"
    assert own_validation(str(path), 21) is None
