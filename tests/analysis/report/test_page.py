"""The report's data and text: they round-trip, and text never becomes markup."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mom.analysis.report.page import (
    Headline,
    PoolTable,
    ReportFigure,
    Table,
    content_hash,
    packed,
    packed_real,
    pieces,
    render,
    script_json,
    viewer_data,
)
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer
from tests.helpers.traces import recorded

NASTY = 'a</script><script>alert(1)</script><!-- & "quoted" \u2028 模块 naïve 😀 <b>module</b>'


def unpacked(column: dict) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(column["data"]), dtype=f"<{column['type']}")
    if "low" not in column:
        return values
    real = column["low"] + values.astype(float) * (column["high"] - column["low"]) / column["steps"]
    return np.where(values > column["steps"], np.nan, real)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31), max_size=20))
def test_integers_survive_the_round_trip(values: list[int]) -> None:
    assert unpacked(packed(np.array(values, dtype=np.int64))).tolist() == values


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=20))
def test_real_numbers_survive_within_a_step(values: list[float]) -> None:
    given_values = np.array(values)
    column = packed_real(given_values)
    step = (column["high"] - column["low"]) / column["steps"]
    found = unpacked(column)

    np.testing.assert_array_equal(np.isnan(found), np.isnan(given_values))
    assert np.all(np.isnan(found) | (np.abs(found - given_values) <= 0.51 * step + 1e-9))


def test_one_value_only() -> None:
    assert unpacked(packed_real(np.array([2.5, np.nan, 2.5]))).tolist()[::2] == [2.5, 2.5]


@settings(deadline=None)
@given(st.text())
def test_json_in_a_script_element_stays_the_same(text: str) -> None:
    written = script_json({"text": text})

    assert "<" not in written
    assert json.loads(written) == {"text": text}


def test_the_pieces_are_the_text() -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer(NASTY)["input_ids"]
    found = pieces(tokenizer, ids)

    assert "".join(found) == NASTY
    assert len(found) == len(ids)
    assert found[found.index("😀") - 1] == ""


def test_ids_that_are_not_text_still_have_pieces() -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 5000).tolist()

    assert len(pieces(small_tokenizer(), ids)) == 5000


@pytest.mark.parametrize("count", [20, 37, 1000])
def test_the_viewer_gets_the_recorded_data(tmp_path: Path, count: int) -> None:
    tokenizer = small_tokenizer()
    ids = np.array(tokenizer(NASTY * 2)["input_ids"])
    traces, _ = recorded(
        tmp_path / "traces", ids, vocab_size=VOCABULARY, num_stages=2, num_ffn_modules=2, top_k=1
    )
    data = json.loads(script_json(viewer_data(traces, tokenizer, count)))
    size = min(count, len(ids))
    rows = {
        (row["token"], row["stage"], row["round"], row["kind"], row["place"]): row
        for row in traces.routing(first=size).to_pylist()
    }

    assert data["count"] == size
    assert [data["pieces"][n] for n in unpacked(data["piece"])] == pieces(tokenizer, ids[:size].tolist())
    assert data["rounds"] == [[stage, number] for stage in range(2) for number in range(4)]
    assert (data["bottom"], data["top"], data["anchors"]) == (1, 1, True)
    assert data["kinds"]["ffn"]["modules"] == 2 and data["kinds"]["attention"]["modules"] == 3
    for kind, pool in data["kinds"].items():
        choice = unpacked(pool["choice"]).reshape(size, 8, pool["places"])
        weight = unpacked(pool["weight"]).reshape(choice.shape)
        for token, index, place in np.ndindex(choice.shape):
            row = rows[(token, *data["rounds"][index], kind, place)]
            assert choice[token, index, place] == row["choice"]
            assert weight[token, index, place] == pytest.approx(row["weight"], abs=1e-4)
    columns = traces.tokens(first=size).to_pydict()
    names = [measure["name"].split(" (")[0].replace(" ", "_") for measure in data["measures"]]
    for name, measure in zip(names[:3], data["measures"][:3], strict=True):
        np.testing.assert_allclose(unpacked(measure["values"]), columns[name], atol=1e-3)
    tokens = [tokenizer.decode([number]) if number >= 0 else "" for number in columns["predicted_id"]]
    assert [data["pieces"][n] for n in unpacked(data["predicted"])] == tokens
    following = [n for n, end in zip(columns["next_id"][:-1], columns["position"][1:], strict=True) if end]
    assert following == [n for n, at in zip(ids[1:size].tolist(), columns["position"][1:], strict=True) if at]
    assert np.isnan(unpacked(data["measures"][3]["values"])).tolist() == [
        loss is None for loss in columns["loss"]
    ]


def test_the_first_measure_that_differs_colors(tmp_path: Path) -> None:
    tokenizer, ids = small_tokenizer(), np.arange(40) % VOCABULARY
    shared, _ = recorded(tmp_path / "share", ids, vocab_size=VOCABULARY)
    first, _ = recorded(tmp_path / "first", ids, vocab_size=VOCABULARY, skip_rule="first")

    # With two assignments, of which at most one goes to SKIP, every token has the same effective depth.
    assert viewer_data(shared, tokenizer, 40)["colored_by"] == 1
    assert viewer_data(first, tokenizer, 40)["colored_by"] == 0


class Elements(HTMLParser):
    """The elements of a page and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_no_text_becomes_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    ids = np.array(tokenizer(NASTY)["input_ids"])
    traces, _ = recorded(tmp_path / "traces", ids, vocab_size=VOCABULARY)
    row = {"choice": 0, "name": NASTY, "full_name": NASTY, "numbers": [NASTY]}
    row |= {"tokens": [{"text": NASTY, "title": NASTY}]}
    page = render(
        traces,
        tokenizer,
        title=NASTY,
        subtitle=NASTY,
        headlines=[Headline(NASTY, NASTY, NASTY)],
        facts=[(NASTY, NASTY, NASTY)],
        pools=[PoolTable(NASTY, "ffn", 0, [NASTY], [row])],
        module_notes=[NASTY],
        choices=[Table(NASTY, NASTY, [NASTY], [[NASTY, NASTY]])],
        figures=[ReportFigure(Figure(figsize=(1, 1)), NASTY, NASTY)],
        footer=NASTY,
        num_tokens=1000,
    )
    elements = Elements(page)

    assert elements.names.count("script") == 2
    assert "b" not in elements.names
    assert page.count("</script>") == 2 and "<!-- " not in page
    fetched = [value for name, value in elements.attributes if name in ("src", "href", "srcset", "action")]
    assert all(
        value is not None and value.startswith(("#", "data:image/svg+xml;base64,")) for value in fetched
    )
    # The policy allows this style and this script, by the hash of what is between their tags, and no other.
    style, script = (
        content_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[0]) for tag in ("style", "script")
    )
    policy = f"default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:"
    assert ("content", policy) in elements.attributes
    assert "@import" not in page and "url(" not in page
