"""Recorded traces, compared with the model's routing records token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mom.analysis import traces as module
from mom.analysis.recording import Window, read_batch, record
from mom.analysis.traces import ROUTING_SCHEMA, TOKENS_SCHEMA, Header, Traces, TraceWriter
from tests.helpers.models import small_model
from tests.helpers.traces import END, recorded, some_ids

CHANGES = [
    {},
    {"top_k": 1, "num_stages": 2, "num_ffn_modules": 2},
    {"skip_rule": "first", "router": "linear"},
    {"top_k": "all", "num_attention_modules": 2},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_choices_losses_and_depths_are_those_of_the_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    ids = some_ids(70)
    traces, model = recorded(tmp_path / "traces", ids, **changes)
    config = model.config
    expected_rows, expected_tokens = [], []
    document = 0
    for window, start in enumerate(range(0, 70, 16)):
        part = torch.from_numpy(ids[start : start + 16])[None]
        with torch.no_grad():
            output = model(input_ids=part, output_routing=True)
        log_p = output.logits[0].log_softmax(-1)
        for position in range(part.shape[1]):
            token = start + position
            depth = {"effective": 0.0, "weighted": 0.0, "modules": 0.0}
            for index, decided in enumerate(output.routing):
                for kind in ("attention", "ffn"):
                    choice = getattr(decided, kind)
                    size = getattr(config, f"num_{kind}_modules")
                    selected, weights = (
                        choice.selected[0, position].tolist(),
                        choice.weights[0, position].tolist(),
                    )
                    for place, (taken, weight) in enumerate(zip(selected, weights, strict=True)):
                        stage, number = divmod(index, config.num_rounds)
                        expected_rows.append(
                            (
                                token,
                                document,
                                position,
                                int(ids[token]),
                                stage,
                                number,
                                kind,
                                place,
                                taken,
                                weight,
                            )
                        )
                        if taken < size:
                            depth["weighted"] += 0.5 * weight
                            depth["modules"] += 1
                    depth["effective"] += 0.5 * any(taken < size for taken in selected)
            fixed = 2 + config.num_stages
            last = position + 1 == part.shape[1]
            loss = None if last else -float(log_p[position, part[0, position + 1]])
            expected_tokens.append(
                (
                    token,
                    window,
                    position,
                    document,
                    int(ids[token]),
                    loss,
                    fixed + depth["effective"],
                    fixed + depth["weighted"],
                    2 * fixed + depth["modules"],
                )
            )
            document += int(ids[token] == END)
    found = traces.routing().to_pylist()
    order = ("token", "stage", "round", "kind", "place")
    found.sort(key=lambda row: tuple(row[name] for name in order))
    expected_rows.sort(key=lambda row: (row[0], row[4], row[5], row[6], row[7]))

    assert [tuple(row.values())[:-1] for row in found] == [row[:-1] for row in expected_rows]
    np.testing.assert_allclose(
        [row["weight"] for row in found], [row[-1] for row in expected_rows], atol=1e-5
    )
    guesses = ("next_id", "predicted_id", "predicted_probability")
    full = [
        tuple(value for name, value in row.items() if name not in guesses)
        for row in traces.tokens().to_pylist()
    ]
    assert [row[:5] for row in full] == [row[:5] for row in expected_tokens]
    assert [row[5] is None for row in full] == [row[5] is None for row in expected_tokens]
    losses = [(row[5] or 0.0, other[5] or 0.0) for row, other in zip(full, expected_tokens, strict=True)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([row[6:] for row in full], [row[6:] for row in expected_tokens], rtol=1e-5)


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_TOKENS", 64)
    model = small_model()
    header = Header(model.config.to_dict(), "", "", [0])
    written = []

    def endless(writer: TraceWriter) -> Any:
        """Yield batches of 2 x 16 tokens, each after the earlier ones were counted or written."""
        for number in range(20):
            assert writer.num_held < 64
            assert writer.num_tokens == 32 * number
            written.append(writer.num_tokens - writer.num_held)
            yield [Window(some_ids(16, seed=number), np.zeros(16)) for _ in range(2)]

    with TraceWriter(tmp_path, header) as writer:
        for number, batch in enumerate(endless(writer)):
            writer.add(read_batch(model, batch, 2 * number))
    with pq.ParquetFile(tmp_path / "routing.parquet") as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]

    assert written == [64 * (number // 2) for number in range(20)]
    # 640 tokens, 64 per group, K = 2, 4 rounds of 2 pools
    assert groups == [64 * 2] * (10 * 4 * 2)


def test_a_group_has_one_stage_round_and_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_TOKENS", 32)
    traces, _ = recorded(tmp_path / "traces", some_ids(100), num_stages=2)
    seen: dict[tuple[int, int, str], list[int]] = {}
    for stage, number, kind, rows in traces.steps():
        assert set(rows["stage"].to_pylist()) == {stage}
        assert set(rows["round"].to_pylist()) == {number}
        assert set(rows["kind"].to_pylist()) == {kind}
        assert rows["place"].to_pylist() == [0, 1] * (len(rows) // 2)
        seen.setdefault((stage, number, kind), []).extend(rows["token"].to_pylist()[::2])

    assert len(seen) == 2 * 4 * 2
    assert all(positions == list(range(100)) for positions in seen.values())
    assert sum(len(rows) for *_, rows in traces.steps(first=40)) == 64 * 2 * 2 * 8


def test_only_some_stages_and_tokens(tmp_path: Path) -> None:
    ids = some_ids(64)
    full, model = recorded(tmp_path / "whole", ids, num_stages=2)
    part, _ = recorded(tmp_path / "part", ids, model=model, stages=[1], num_tokens=40)

    assert set(part.routing()["stage"].to_pylist()) == {1}
    # A row's 40 tokens are 16 + 16 + 8 here and 16 + 16 + 16 there, so only complete windows are equal.
    assert part.routing(first=32) == full.routing(first=32, stage=1)
    assert part.num_tokens == 40
    assert part.tokens(["token_id"])["token_id"].to_pylist() == ids[:40].tolist()
    assert part.tokens(["effective_depth"], first=32) == full.tokens(["effective_depth"], first=32)
    assert part.header.stages == [1]
    assert set(full.routing(["choice"], kind="ffn", round=2, stage=0)["choice"].to_pylist()) <= {0, 1, 2, 3}


def test_a_recording_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model = small_model()

    def broken() -> Any:
        yield [Window(some_ids(16), np.zeros(16))]
        raise OSError("the disk failed")

    with pytest.raises(OSError, match="the disk failed"):
        record(model, broken(), tmp_path, Header(model.config.to_dict(), "", "", [0]))

    assert list(tmp_path.iterdir()) == []


def test_the_files_describe_their_model(tmp_path: Path) -> None:
    traces, model = recorded(tmp_path / "traces", some_ids(20))

    assert pq.read_schema(tmp_path / "traces" / "routing.parquet").equals(ROUTING_SCHEMA)
    assert pq.read_schema(tmp_path / "traces" / "tokens.parquet").equals(TOKENS_SCHEMA)
    assert traces.header.config.to_dict() == model.config.to_dict()
    assert (traces.header.num_modules("ffn"), traces.header.num_rounds) == (3, 4)
    pq.write_table(traces.tokens().replace_schema_metadata({}), tmp_path / "tokens.parquet")
    with pytest.raises(ValueError, match=r"^folder .* must contain routing\.parquet and tokens\.parquet"):
        Traces(tmp_path)


def test_traces_of_version_0_1_can_be_read(tmp_path: Path) -> None:
    """Their header has no list of pools."""
    traces, model = recorded(tmp_path / "traces", some_ids(20))
    fields = {
        name: value for name, value in model.config.to_dict().items() if name not in ("pools", "mom_version")
    }
    header = json.dumps({"model": fields, "source": "old.ckpt", "text": "old", "stages": [0]})
    table = traces.tokens().replace_schema_metadata({"mom": header})
    pq.write_table(table, tmp_path / "traces" / "tokens.parquet")
    old = Traces(tmp_path / "traces")

    assert list(old.header.pools) == ["attention", "ffn"]
    assert (old.header.num_modules("ffn"), old.header.source) == (3, "old.ckpt")
    assert old.routing(kind="ffn") == traces.routing(kind="ffn")
