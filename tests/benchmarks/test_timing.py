"""Contenders run in turn, and long ones less often."""

from __future__ import annotations

from benchmarks import timing


def test_contenders_run_in_turn_after_a_warm_up():
    order: list[str] = []
    seconds = timing.timed({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_repetitions_end_before_the_limit_but_for_the_first(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    for limit, repeats in ((5, 1), (29, 2), (30, 3), (1000, 4)):
        monkeypatch.setattr(timing, "LIMIT_SECONDS", limit)
        assert timing.timed({"work": lambda: None}, 4)["work"] == [10] * repeats


def test_ratios_are_of_each_repetition():
    assert timing.ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b", 0.5) == [1.0, 1.5]
