"""Windows of a text, and the depths of its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.analysis.recording import batch_windows, depths, split_windows
from mom.metrics.depth import depth_metrics, depth_sums
from mom.metrics.sums import collect
from tests.helpers.models import small_model, tokens
from tests.helpers.traces import END, recorded, some_ids, token_file


def test_depths_of_tokens_average_to_the_metrics() -> None:
    model = small_model(skip_rule="first")
    ids = tokens(3, 20)
    with torch.no_grad():
        routing = model(input_ids=ids, output_routing=True).routing
    pools = ("attention", "ffn")
    totals = collect(depth_sums(routing, torch.ones_like(ids, dtype=torch.bool), pools))
    metrics = depth_metrics(totals, pools, fixed_depth=3, graph_depth=7)
    found = {name: float(value.mean()) for name, value in depths(routing, model.config).items()}

    assert found == {
        "effective_depth": pytest.approx(metrics["effective"]),
        "weighted_depth": pytest.approx(metrics["weighted"]),
        "modules_per_token": pytest.approx(metrics["modules_per_token"]),
    }
    assert metrics["effective"] < 7


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    length=st.integers(1, 17),
    batch=st.integers(1, 4),
    most=st.none() | st.integers(1, 60),
)
def test_windows_hold_the_text_in_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, batch: int, most: int | None
) -> None:
    folder = tmp_path_factory.mktemp("files")
    texts = [some_ids(count, vocab_size=5, seed=n) for n, count in enumerate(lengths)]
    files = [token_file(folder, ids, f"{n}.bin") for n, ids in enumerate(texts)]
    batches = list(batch_windows(split_windows(files, length, END), batch, most))
    documents, current = [], 0
    for ids in texts:
        for token in ids:
            documents.append(current)
            current += int(token == END)
        if len(ids) and ids[-1] != END:
            current += 1
    flat = [window for group in batches for window in group]

    assert all(len({len(window.ids) for window in group}) == 1 and len(group) <= batch for group in batches)
    assert all(1 <= len(window.ids) <= length for window in flat)
    np.testing.assert_array_equal(
        np.concatenate([np.empty(0), *(window.ids for window in flat)]), np.concatenate(texts)[:most]
    )
    np.testing.assert_array_equal(
        np.concatenate([np.empty(0), *(window.document for window in flat)]), documents[:most]
    )


def test_predictions_are_the_most_likely_next_tokens(tmp_path: Path) -> None:
    ids = some_ids(48)
    traces, model = recorded(tmp_path / "traces", ids, length=16)
    found = traces.tokens().to_pydict()
    with torch.no_grad():
        probability = model(input_ids=torch.from_numpy(ids.reshape(3, 16))).logits.softmax(-1)
    best, token = probability.max(-1)
    for index, (row, place) in enumerate(np.ndindex(3, 16)):
        if place == 15:
            assert found["next_id"][index] == found["predicted_id"][index] == -1
            assert found["predicted_probability"][index] is None
            continue
        assert found["next_id"][index] == ids[index + 1]
        assert found["predicted_id"][index] == int(token[row, place])
        assert found["predicted_probability"][index] == pytest.approx(float(best[row, place]), rel=1e-4)
        own = float(probability[row, place, ids[index + 1]])
        assert np.exp(-found["loss"][index]) == pytest.approx(own, rel=1e-4)
