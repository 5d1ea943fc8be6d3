"""The table at the end of a run."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from mom.console import print_report
from mom.evaluation.report import results_table


def text_of(columns, caption=None) -> str:
    out = io.StringIO()
    table = results_table(columns, "6 steps", caption)
    print_report(table, Path("outputs/pretrain/x"), Console(file=out, width=100))
    return out.getvalue()


def test_it_has_every_number_and_the_directory():
    mom = {
        "val/loss": 4.2714,
        "val/perplexity": 71.62,
        "parameters": 2_500_000,
        "depth/graph": 12,
        "depth/effective": 9.25,
        "routing/ffn/skip_rate": 0.125,
        "throughput/tokens_per_second": 12_345.6,
    }
    text = text_of({"MoM": mom, "plain": {"val/loss": 4.3}}, "Both start from the same.")
    for shown in ("4.2714", "71.62", "2,500,000", "12", "9.25", "12.5%", "12,346", "4.3000", "–"):
        assert shown in text
    assert "bits per byte" not in text, "a row that nobody has"
    assert "Both start from the same." in text
    assert text.splitlines()[-1] == "Written to outputs/pretrain/x"
