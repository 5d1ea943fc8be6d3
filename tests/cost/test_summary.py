"""The summary of a model before training: every parameter is in one part."""

from __future__ import annotations

import pytest

from mom.console import print_table
from mom.cost.estimate import flops_per_token, num_parameters
from mom.cost.summary import parameters_by_part, summary_table
from tests.helpers.models import small_model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_stages": 0},
        {"block": "llama", "num_heads": 2},
        {"tie_word_embeddings": False, "router": "gru"},
        {"pools": {"attention": {}, "first": {"kind": "ffn"}, "second": {"kind": "ffn"}}, "num_stages": 2},
    ],
)
def test_every_parameter_is_in_one_part(options: dict, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(**options)
    counts = parameters_by_part(model)

    assert sum(counts.values()) == num_parameters(model.config)
    assert counts["embeddings"] >= model.get_input_embeddings().weight.numel()
    pools = [layout.name for layout in model.config.pools()] if model.config.num_stages else []
    assert [part.removesuffix(" modules") for part in counts if part.endswith(" modules")] == pools
    print_table(summary_table(model, 16))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    (row,) = (line for line in lines if line.startswith("in total"))
    assert f"{num_parameters(model.config):,}" in row
    flops = flops_per_token(model.config, 16).total
    assert float(row.split()[-2]) * {"k": 1e3, "M": 1e6}[row.split()[-1]] == pytest.approx(flops, rel=5e-3)
