"""The benchmark of a GPU: its refusal without one, and all of its paths on the CPU at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from mom.model import MoMModel

DOCS = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- make bench-gpu: begin -->", "<!-- make bench-gpu: end -->"


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "error: make bench-gpu requires a CUDA GPU, and PyTorch finds none\n"


def test_every_row_is_filled(tmp_path, monkeypatch, capsys):
    # Whether compiled models compute the same is tested elsewhere; here it would take a minute.
    monkeypatch.setattr(MoMModel, "compile_layers", lambda self: None)
    docs = tmp_path / "performance.md"
    docs.write_text(DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    assert gpu.report("smallest", "cpu", 1, tmp_path / "gpu.json", docs) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert set(record["results"]) == {line.name for line in gpu.LINES} and not record["missing"]
    assert record["results"]["float32_difference"]["value"] == 0
    assert 0 < record["results"]["bfloat16_difference"]["value"] < 0.05
    text = docs.read_text(encoding="utf-8")
    written = text.partition(BEGIN)[2].partition(END)[0]
    cells = [line.split("|") for line in written.split("\n") if line.startswith("|")]
    assert record["machine"]["device"] in written and len(cells) == 2 + len(gpu.LINES)
    assert all(reached.strip() != "–" for _, _, reached, *_ in cells)
    before, _, after = text.partition(written)
    original = DOCS.read_text(encoding="utf-8")
    assert original.startswith(before) and original.endswith(after)
    assert "Written to" in capsys.readouterr().out


def test_what_fails_or_has_no_time_is_named(monkeypatch):
    def fail(self: gpu.GPUBench) -> dict:
        raise torch.cuda.OutOfMemoryError("out of memory\nat length")

    for name in ("host_syncs", "memory", "pool_size", "decode", "step"):
        monkeypatch.setattr(gpu.GPUBench, name, fail)
    # A replaced method has the name of its replacement.
    fail.__name__ = "step"
    kept = []
    keep = lambda found, missing: kept.append((dict(found), dict(missing)))  # noqa: E731
    found, missing = gpu.measure_all(gpu.SIZES["smallest"], "cpu", 1, keep)
    assert kept[1][0] == found and kept[-1] == (found, missing)
    assert set(found) == {"float32_difference", "bfloat16_difference"}
    assert missing == {"step": "OutOfMemoryError: out of memory"}
    assert gpu.measure_all(gpu.SIZES["smallest"], "cpu", 1, keep, limit=-1)[0] == {}


@pytest.mark.parametrize("mark", [BEGIN, END])
def test_the_document_has_a_place_for_the_table(mark):
    assert DOCS.read_text(encoding="utf-8").count(mark) == 1
