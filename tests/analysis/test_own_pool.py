"""An analysis of a model with a third pool of a custom kind: traces, tables, ablation, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mom.analysis.interventions import list_modules, measure_removal, measure_similarity
from mom.analysis.messages import fact_rows, module_notes, pool_tables
from mom.analysis.report.page import render, viewer_data
from mom.analysis.samples import Batch
from mom.analysis.statistics import depth_statistics, routing_statistics
from mom.analysis.summary import draw_figures, module_parameters, summarize
from mom.analysis.tables import module_table, removal_table, similarity_table, token_table, use_table
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer
from tests.helpers.models import tokens
from tests.helpers.plugins import THREE_POOLS, causal_conv
from tests.helpers.traces import recorded, some_ids


@pytest.fixture(autouse=True, scope="module")
def example() -> Iterator[None]:
    with causal_conv():
        yield


def test_every_part_of_the_report_has_the_third_pool(tmp_path: Path) -> None:
    ids = some_ids(60, VOCABULARY)
    traces, model = recorded(tmp_path / "traces", ids, vocab_size=VOCABULARY, pools=THREE_POOLS, top_k=1)
    header, tokenizer, config = traces.header, small_tokenizer(), model.config
    routing, depths = routing_statistics(traces), depth_statistics(traces)

    assert list(routing) == THREE_POOLS == sorted(set(traces.routing(["kind"])["kind"].to_pylist()))
    for pool, usage in routing.items():
        rows = traces.routing(["round", "choice"], kind=pool).to_pandas()
        counts = rows.groupby(["round", "choice"]).size()
        assert usage.assignments.sum() == len(rows) == 60 * config.num_rounds
        assert all(usage.assignments[place] == count for place, count in counts.items())
    per_token = traces.tokens(["effective_depth", "modules_per_token"]).to_pandas()
    skipped = {pool: int(usage.assignments[:, -1].sum()) for pool, usage in routing.items()}
    # A step in which a token runs a module counts a third of a block.
    expected = config.graph_depth - sum(skipped.values()) / 3 / 60
    assert depths.mean["effective_depth"] == pytest.approx(expected, rel=1e-5)
    assert per_token["effective_depth"].mean() == pytest.approx(expected, rel=1e-5)
    values, counts = depths.distribution["effective_depth"]
    assert (counts @ values) / 60 == pytest.approx(expected, rel=1e-5)

    pairs = measure_similarity(model, [Batch.of_text(tokens(2, 12))], 32)
    removal = measure_removal(model, [Batch.of_text(tokens(1, 8))], greedy=False)
    assert {module.kind for module in removal.alone} == set(THREE_POOLS)
    assert [str(module) for module in list_modules(model) if module.kind == "causal_conv"] == [
        f"convolution {number}" for number in range(config.pools()[1].num_modules)
    ]
    facts = summarize(model, header, depths, routing, removal, 0.01, 16)
    assert facts["flops/forward_actual"] < facts["flops/forward"]
    labels = [label for label, *_ in fact_rows(facts, header)]
    assert "convolution: SKIP share of assignments" in labels
    modules = module_table(header, routing, module_parameters(model), pairs, removal, 0.01)
    top = token_table(header, routing, tokenizer, 3)
    for rows in (use_table(header, routing), modules, top, similarity_table(pairs)):
        assert {row["kind"] for row in rows} == set(THREE_POOLS)
    assert {row["kind"] for row in removal_table(removal)} == {None, *THREE_POOLS}

    data = json.loads(json.dumps(viewer_data(traces, tokenizer, 60)))
    assert {pool: kind["label"] for pool, kind in data["kinds"].items()} == {
        "attention": "attention",
        "causal_conv": "convolution",
        "ffn": "FFN",
    }
    drawn = draw_figures(header, routing, depths, pairs, removal, 0.01, "run")
    page = render(
        traces,
        tokenizer,
        title="Routing",
        subtitle="",
        headlines=[],
        facts=fact_rows(facts, header),
        pools=pool_tables(header, modules, top),
        module_notes=module_notes(removal, 0.01),
        choices=[],
        figures=list(drawn.values()),
        footer="",
        num_tokens=60,
    )
    for heading in ("Attention", "Convolution", "FFN"):
        assert f">{heading}</h3>" in page
    assert page.count("<img ") == len(drawn)
    assert np.isfinite([row["share"] for row in modules]).all()
