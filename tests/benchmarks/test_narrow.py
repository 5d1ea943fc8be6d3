"""The benchmark of narrow models runs, and compares models of about equal FLOPs."""

from __future__ import annotations

from benchmarks import narrow


def test_it_measures_each_width(capsys):
    results = narrow.main(["--repeats", "1"])
    assert len(results) == len(narrow.SETTINGS)
    assert all(found["ratio"] == found["mom"] / found["plain"] > 0 for found in results.values())
    assert "width 48, 256 tokens" in capsys.readouterr().out
