"""Classes of code, and depth by class and by loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mom.analysis.difficulty import Groups, depth_by_difficulty
from mom.analysis.token_classes import CLASSES, character_classes, code_classes
from tests.analysis.test_dependence import recorded
from tests.helpers.models import small_model

CODE = 'def f(x):  # note\n    return x + 1.5, "a b"\n'


def test_classes_of_characters():
    names = [CLASSES[index] for index in character_classes(CODE)]
    at = {text: names[CODE.index(text)] for text in ("def", "f(", "(", "# note", "return", "1.5", '"a b"')}
    assert list(at.values()) == [
        "keyword",
        "name",
        "operator",
        "comment",
        "keyword",
        "number",
        "string",
    ]
    assert names[CODE.index("\n    ")] == names[3] == "space"


@pytest.mark.parametrize("text", ["A sentence of English prose.", "one\ntwo\n", "", "x = (", "def\n"])
def test_other_text_has_no_classes(text):
    assert character_classes(text) is None


def test_code_that_is_cut_off_has_classes_up_to_its_end():
    classes = character_classes(CODE * 3 + "def g(y):\n    return [")
    assert classes is not None
    assert CLASSES[classes[-8]] == "keyword"


def test_classes_of_tokens_by_document():
    pieces = ["def", " f", "():", "", "\n", "    ", "pass", "\n", "Some", " prose", " here."]
    document = np.array([0] * 8 + [1] * 3)
    found = [CLASSES[index] if index >= 0 else None for index in code_classes(pieces, document)]
    assert found == [
        "keyword",
        "name",
        "operator",
        None,
        "space",
        "space",
        "keyword",
        "space",
        None,
        None,
        None,
    ]


def test_depth_by_loss_and_group_is_the_mean_of_the_tokens(tmp_path: Path):
    model = small_model(top_k=1)
    traces = recorded(tmp_path, model, np.arange(60).reshape(6, 10))
    group = np.arange(60) % 3 - 1
    longer = np.append(group, [0, 1])  # a source knows the groups of all its tokens, recorded or not
    rows = depth_by_difficulty(traces, {"third": Groups(longer, ["a", "b"])})
    tokens = traces.tokens().to_pandas()
    assert [row.group for row in rows if row.by == "third"] == ["a", "b"]
    for row, value in zip([row for row in rows if row.by == "third"], (0, 1), strict=True):
        assert row.effective_depth == pytest.approx(tokens["effective_depth"][group == value].mean())
        assert row.tokens == 20
    losses = [row.loss for row in rows if row.by == "loss"]
    assert len(losses) == 10 and losses == sorted(losses)
    assert sum(row.tokens for row in rows if row.by == "loss") == 54
