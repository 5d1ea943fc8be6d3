"""Tables of benchmarks: targets, quartiles, and the place in a document."""

from __future__ import annotations

import pytest

from benchmarks.report import Line, Measured, table, write_docs


def test_a_measurement_is_the_median_with_quartiles():
    measured = Measured.of([5.0, 1.0, 2.0])
    assert (measured.value, measured.low, measured.high) == (2.0, 1.5, 3.5)
    assert Measured.of([7.0]) == Measured(7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("targets", "text", "values"),
    [
        ({"at_least": 0.8}, "≥ 0.80", {0.79: "no", 0.8: "yes", 9.0: "yes"}),
        ({"at_most": 0.8}, "≤ 0.80", {0.79: "yes", 0.8: "yes", 9.0: "no"}),
        ({"at_most": 0}, "≤ 0.00", {0.0: "yes", 1.0: "no"}),
        ({}, "–", {0.0: "–"}),
    ],
)
def test_a_target_is_met_or_not(targets, text, values):
    line = Line("name", "what", "{:.2f}", **targets)
    assert line.target == text
    assert {value: line.met(value) for value in values} == values


def test_the_table_names_what_is_missing():
    lines = [Line("a", "first", "{:.1f} s", at_most=2), Line("b", "second", "{:.0%}", at_least=0.5)]
    text = table(lines, {"a": Measured.of([1.0])}, {"b": "no time"}, "today")
    assert text.split("\n") == [
        "today.",
        "",
        "| what | reached | target | met |",
        "|---|---|---|---|",
        "| first | 1.0 s | ≤ 2.0 s | yes |",
        "| second | – | ≥ 50% | – |",
        "",
        "Not measured: b: no time.",
    ]


def test_only_the_place_of_the_command_is_replaced(tmp_path):
    docs = tmp_path / "page.md"
    docs.write_text("1 <!-- x: begin -->old<!-- x: end --> 2 <!-- x-gpu: begin -->kept<!-- x-gpu: end --> 3")
    write_docs(docs, "x", "new")
    kept = "<!-- x-gpu: begin -->kept<!-- x-gpu: end --> 3"
    assert docs.read_text() == f"1 <!-- x: begin -->\n\nnew\n\n<!-- x: end --> 2 {kept}"
