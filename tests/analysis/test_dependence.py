"""What recorded choices depend on, for routers whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mom.analysis.dependence import choice_dependence, first_choices, round_changes
from mom.analysis.recording import Window, record
from mom.analysis.statistics import routing_statistics
from mom.analysis.traces import Header, Traces
from tests.helpers.models import small_model
from tests.helpers.rules import rule_model


def recorded(folder: Path, model, ids: np.ndarray) -> Traces:
    """Record windows of token IDs, [windows, T]."""
    batch = [Window(row, np.zeros_like(row)) for row in ids]
    header = Header(model.config.to_dict(), "", "", list(range(model.config.num_stages)))
    return record(model, iter([batch[::2], batch[1::2]]), folder, header)


def means(traces: Traces, **attributes) -> dict:
    found = choice_dependence(traces, attributes)
    return {(item.kind, item.attribute): item for item in found if item.round is None}


def test_the_choices_of_the_random_router_follow_from_the_token_id(tmp_path):
    ids = np.random.default_rng(0).integers(0, 61, (40, 16))
    model = small_model(router="random", top_k=1, num_rounds=2, num_stages=2)
    found = means(recorded(tmp_path, model, ids))
    for pool in ("attention", "ffn"):
        by_token = found[pool, "token_id"]
        assert by_token.information == pytest.approx(by_token.entropy)
        assert (by_token.share, by_token.fixed) == pytest.approx((1, 1))
        assert found[pool, "previous_token_id"].share == pytest.approx(0, abs=0.05)
        assert found[pool, "position"].share == pytest.approx(0, abs=0.05)


def test_the_choices_of_a_router_by_position_follow_from_the_position_and_the_rule(tmp_path):
    ids = np.random.default_rng(0).integers(3, 6, (40, 9))
    traces = recorded(tmp_path, rule_model("linear"), ids)
    rule = np.tile(np.arange(9) % 3, 40)
    noise = np.random.default_rng(1).integers(0, 3, 360)
    rule_with_unknown = np.where(np.arange(360) % 2, rule, -1)
    found = means(traces, rule=rule_with_unknown, noise=noise)
    assert found["ffn", "position"].share == pytest.approx(1)
    assert found["ffn", "rule"].share == pytest.approx(1)
    assert found["ffn", "position"].entropy == pytest.approx(math.log(3))
    assert found["ffn", "token_id"].share == pytest.approx(0, abs=0.05)
    assert found["ffn", "noise"].share == pytest.approx(0, abs=0.05)


def test_the_choices_of_the_sequential_router_follow_from_the_round(tmp_path):
    model = small_model(router="sequential", top_k=1, num_rounds=6)
    traces = recorded(tmp_path, model, np.arange(60).reshape(4, 15))
    found = means(traces)
    assert found["ffn", "round"].share == pytest.approx(1)
    assert found["ffn", "round"].entropy == pytest.approx(math.log(3))
    assert math.isnan(found["ffn", "token_id"].share)  # within a round, all tokens choose the same
    assert [set(choice) for choice in first_choices(traces)["ffn"].values()] == [{0}, {1}, {2}] * 2
    assert round_changes(routing_statistics(traces)["ffn"], traces.header) == dict.fromkeys(range(1, 6), 1.0)


def test_round_changes_are_counted_within_stages(tmp_path):
    model = small_model(num_rounds=2, num_stages=2)
    traces = recorded(tmp_path, model, np.arange(60).reshape(4, 15))
    choices = first_choices(traces)["attention"]
    changes = round_changes(routing_statistics(traces)["attention"], traces.header)
    assert set(changes) == {1, 3}
    assert changes[1] == pytest.approx((choices[0] != choices[1]).mean())
    assert changes[3] == pytest.approx((choices[2] != choices[3]).mean())
