"""The figure of modules by rule, compared with the given counts."""

from __future__ import annotations

import numpy as np
import pytest

from mom.plots.rules import modules_by_rule
from mom.plots.style import png


def test_rules_are_ordered_by_their_modules_in_the_most_distinct_round() -> None:
    counts = np.zeros((3, 3, 4))
    counts[0] = 5  # equal rows
    counts[1, [0, 1, 2], [2, 0, 1]] = 8  # rule 0 runs module 2, and so on
    counts[1, 0, 3] = 2  # and skips in a fifth of its tokens
    counts[2, :, 1] = 4
    figure = modules_by_rule(counts)
    panels = [axis for axis in figure.axes if axis.images]

    assert [axis.get_title() for axis in panels] == ["round 0", "round 1", "round 2"]
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["rule 1", "rule 2", "rule 0"]
    assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["0", "1", "2", "SKIP"]
    shown = [axis.images[0].get_array().tolist() for axis in panels]
    assert shown[0] == [[0.25] * 4] * 3
    assert shown[1] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, pytest.approx(0.8), pytest.approx(0.2)]]
    assert [text.get_text() for text in panels[1].texts][-2:] == ["80", "20"]
    assert png(figure).startswith(b"\x89PNG")


def test_rules_without_tokens_are_omitted_and_stages_named() -> None:
    counts = np.zeros((2, 3, 4))
    counts[:, 0, 1] = counts[:, 2, 0] = 1
    figure = modules_by_rule(counts, num_stages=2)
    panels = [axis for axis in figure.axes if axis.images]

    assert [axis.get_title() for axis in panels] == ["stage 0, round 0", "stage 1, round 0"]
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["rule 2", "rule 0"]
