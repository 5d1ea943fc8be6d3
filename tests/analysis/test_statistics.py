"""Statistics of traces, compared with counts row by row."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mom.analysis import traces as module
from mom.analysis.statistics import Routing, depth_statistics, routing_statistics, top_tokens
from tests.helpers.traces import recorded, some_ids


@pytest.mark.parametrize(
    "changes", [{}, {"num_stages": 2, "top_k": 1, "num_ffn_modules": 2}, {"skip_rule": "first"}], ids=str
)
def test_use_flow_and_tokens_of_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "GROUP_TOKENS", 32)  # several groups, so that sums are added up over them
    traces, model = recorded(tmp_path / "traces", some_ids(90), **changes)
    rounds = model.config.num_rounds
    found = routing_statistics(traces)
    rows = traces.routing().to_pylist()
    for kind in ("attention", "ffn"):
        slots = getattr(model.config, f"num_{kind}_modules") + 1
        own = [row for row in rows if row["kind"] == kind]
        places: Counter[Any] = Counter((row["stage"] * rounds + row["round"], row["choice"]) for row in own)
        weight: Counter[Any] = Counter()
        types: Counter[Any] = Counter((row["stage"], row["choice"], row["token_id"]) for row in own)
        first = {}
        for row in own:
            index = row["stage"] * rounds + row["round"]
            weight[index, row["choice"]] += row["weight"]
            if row["place"] == 0:
                first[row["token"], index] = row["choice"]
        flow: Counter[Any] = Counter(
            (index, choice, first[token, index + 1])
            for (token, index), choice in first.items()
            if (token, index + 1) in first
        )
        for index, choice in np.ndindex(found[kind].assignments.shape):
            assert found[kind].assignments[index, choice] == places[index, choice]
            assert found[kind].weight[index, choice] == pytest.approx(weight[index, choice])
        for place in np.ndindex(found[kind].flow.shape):
            assert found[kind].flow[place] == flow[place]
        for place in np.ndindex(found[kind].by_type.shape):
            assert found[kind].by_type[place] == types[place]
        assert found[kind].assignments.shape == (model.config.num_stages * rounds, slots)


def test_depth_by_frequency_and_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_TOKENS", 32)
    traces, _ = recorded(tmp_path / "traces", some_ids(200, vocab_size=9), skip_rule="first")
    found = depth_statistics(traces)
    rows = traces.tokens().to_pylist()
    losses = [row["loss"] for row in rows if row["loss"] is not None]

    assert found.tokens == 200 and found.predicted == len(losses) == 200 - 13
    assert found.loss == pytest.approx(sum(losses) / len(losses))
    occurrences = Counter(row["token_id"] for row in rows)
    for name in ("effective_depth", "weighted_depth"):
        assert found.mean[name] == pytest.approx(np.mean([row[name] for row in rows]))
        depths, counts = found.distribution[name]
        assert counts.sum() == 200
        width = depths[1] - depths[0]
        for depth, count in zip(depths, counts, strict=True):
            # A depth on an edge may fall to either side by its last bit.
            near = sum(abs(row[name] - depth) < 0.499 * width for row in rows)
            within = sum(abs(row[name] - depth) < 0.501 * width for row in rows)
            assert near <= count <= within
        for binned, key in ((found.by_frequency[name], "frequency"), (found.by_loss[name], "loss")):
            edges = np.asarray(binned.edges)
            sums = np.zeros((3, len(edges) - 1))
            for row in rows:
                value = 1e6 * occurrences[row["token_id"]] / 200 if key == "frequency" else row["loss"]
                if value is not None:
                    place = min(max(int(np.searchsorted(edges, value, side="right")) - 1, 0), len(edges) - 2)
                    sums[:, place] += [1, row[name], row[name] ** 2]
            np.testing.assert_allclose([binned.tokens, binned.total, binned.squares], sums, rtol=1e-5)


def test_the_tokens_that_distinguish_a_module() -> None:
    #            type: 0   1   2  3
    places = np.array([[8, 40, 1, 1], [2, 40, 0, 8], [0, 0, 0, 0]])
    routing = Routing(np.zeros((1, 3), int), np.zeros((1, 3)), np.zeros((0, 3, 3), int), places[None])
    (slots,) = top_tokens(routing, 2)

    def score(slot: int, kind: int) -> float:
        own, overall = places[slot, kind] / places[slot].sum(), places[:, kind].sum() / places.sum()
        return own * math.log(own / overall)

    # Type 1 is equally frequent everywhere, so it distinguishes no module, although it has most assignments.
    assert [token["token_id"] for token in slots[0]] == [0, 2]
    assert [token["token_id"] for token in slots[1]] == [3]
    assert slots[0][0]["places"] == 8
    assert slots[0][0]["share"] == pytest.approx(0.8)
    assert slots[0][0]["lift"] == pytest.approx((8 / 50) / (10 / 100))
    assert score(0, 0) > score(0, 2) > 0 == score(0, 1) and score(1, 3) > 0 > score(1, 0)
    assert slots[2] == []
