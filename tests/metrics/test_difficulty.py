"""Depth against difficulty, on tokens whose depth is given."""

from __future__ import annotations

import numpy as np
import pytest

from mom.metrics.difficulty import depth_by_group, quantile_groups


def test_means_of_groups():
    columns = {
        "loss": np.array([1.0, 3.0, np.nan, 5.0]),
        "effective_depth": np.array([2.0, 4.0, 6.0, 8.0]),
        "weighted_depth": np.zeros(4),
        "modules_per_token": np.arange(4.0),
    }
    rows = depth_by_group("hop", {0: "one", 1: "two", 2: "none"}, np.array([0, 1, 1, -1]), columns)
    assert [(row.group, row.tokens, row.loss, row.effective_depth) for row in rows] == [
        ("one", 1, 1.0, 2.0),
        ("two", 2, 3.0, 5.0),
    ]
    assert rows[1].modules_per_token == 1.5


def test_quantile_groups_have_equal_sizes_and_increase():
    values = np.random.default_rng(0).normal(size=103)
    values[5] = np.nan
    names, group = quantile_groups(values, 4)
    assert group[5] == -1
    assert np.bincount(group[group >= 0]).tolist() == pytest.approx([25.5] * 4, abs=0.5)
    assert all(values[group == i].max() <= values[group == i + 1].min() for i in range(3))
    assert names[0] == f"{np.nanmin(values):.2f} … {values[group == 0].max():.2f}"
    assert quantile_groups(np.array([np.nan]), 4)[0] == {}
