"""The history of a run is bounded, evenly spaced, and the same after a resume."""

from __future__ import annotations

import torch

from mom.callbacks import routing_statistics
from mom.callbacks.routing_statistics import RoutingStatistics


def test_a_long_history_is_thinned_evenly_also_over_resumes(monkeypatch):
    monkeypatch.setattr(routing_statistics, "MAX_POINTS", 8)
    once, resumed = RoutingStatistics(), RoutingStatistics()
    for step in range(100):
        for callback in (once, resumed):
            callback._append(step, {"ffn": torch.full((1, 3), step)})
        if step % 7 == 0:
            state = resumed.state_dict()
            resumed = RoutingStatistics()
            resumed.load_state_dict(state)
        steps = once.history["steps"]
        assert len(steps) <= 8 and len(steps) >= min(step + 1, 4)
        assert len(set(steps.diff().tolist())) <= 1 and steps[0] == 0
        assert torch.equal(once.history["ffn"][:, 0, 0], steps)
    assert once.history["steps"].tolist() == [0, 16, 32, 48, 64, 80, 96]
    assert torch.equal(resumed.history["ffn"], once.history["ffn"])


def test_a_history_of_an_earlier_version_goes_on():
    callback = RoutingStatistics()
    callback.load_state_dict({"steps": torch.arange(3), "ffn": torch.zeros(3, 1, 3)})
    callback._append(3, {"ffn": torch.zeros(1, 3)})
    assert callback.history["steps"].tolist() == [0, 1, 2, 3]
