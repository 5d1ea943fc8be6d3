"""Single values: types, ranges, names, and the words in which they are refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from mom.config.checks import conform, describe, in_range, is_plain, known_names
from mom.errors import RequestError, as_written, nearest, one_of

FITTING: list[tuple[Any, Any, Any]] = [
    (3, int, 3),
    (3, float, 3.0),
    (True, bool, True),
    (None, int | None, None),
    (3, int | float, 3),
    (0.5, int | float, 0.5),
    ("all", int | Literal["all"], "all"),
    (True, bool | Literal["auto"], True),
    ([0.9, 1], tuple[float, float], (0.9, 1.0)),
    ([1, 2], int | list[int], [1, 2]),
    ({"a": 1}, dict, {"a": 1}),
]
MISFITS: list[tuple[Any, Any]] = [
    ("3", int),
    (3.0, int),
    (True, int),
    (True, float),
    (1, bool),
    (None, int),
    ("x", float | None),
    (1, Literal["a", True]),
    ([0.9], tuple[float, float]),
    ("ab", tuple[str, str]),
    ([1, "x"], list[int]),
    ("ab", list[str]),
    ([], dict),
]


@pytest.mark.parametrize(("value", "hint", "expected"), FITTING)
def test_fitting_values_are_taken(value: Any, hint: Any, expected: Any) -> None:
    found = conform("group.name", value, hint)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("value", "hint"), MISFITS)
def test_misfits_are_refused_with_what_is_allowed(value: Any, hint: Any) -> None:
    with pytest.raises(RequestError) as refused:
        conform("group.name", value, hint)

    assert str(refused.value) == f"group.name: {as_written(value)}; {describe(hint)}"


def test_a_misspelled_choice_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"^x: cosin; did you mean cosine\? one of cosine, constant$"):
        conform("x", "cosin", Literal["cosine", "constant"])


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "an integer or null"),
        (int | float | None, "an integer, a number or null"),
        (tuple[float, float], "a list of 2: a number, a number"),
        (Literal["64", 64], "64"),
        (list[int], "a list, each an integer"),
    ],
)
def test_hints_in_words(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_hints_of_other_classes_are_left_alone() -> None:
    assert is_plain(int | None)
    assert is_plain(list[str])
    assert not is_plain(Exception)
    assert not is_plain(int | Exception)


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (0, {"least": 1}),
        (0.0, {"above": 0}),
        (1.5, {"most": 1}),
        (1.0, {"below": 1}),
        (float("nan"), {"least": 0}),
        (float("inf"), {"least": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(value: float, bounds: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=r"^x: "):
        in_range("x", value, **bounds)


def test_numbers_on_the_bound_and_none_pass() -> None:
    in_range("x", 1, least=1, most=1)
    in_range("x", None, least=1)


def test_the_range_is_told_in_digits() -> None:
    with pytest.raises(RequestError) as refused:
        in_range("seed", -1, least=0, most=2**32 - 1)

    assert str(refused.value) == "seed: -1; an integer, at least 0 and at most 4,294,967,295"


def test_unknown_names_are_refused_with_the_nearest_or_the_list() -> None:
    with pytest.raises(
        RequestError, match=r"^data\.batch_sise: 1; no such option, did you mean data\.batch_size\?$"
    ):
        known_names("data", {"batch_sise": 1}, ["path", "batch_size"])
    with pytest.raises(RequestError, match=r"^data\.zzz: 1; no such option; data has path, batch_size$"):
        known_names("data", {"zzz": 1}, ["path", "batch_size"])


def test_nearest_ignores_case_and_gives_up_when_nothing_is_near() -> None:
    assert nearest("TopK", ["top_k", "d_model"]) == "top_k"
    assert nearest("zzz", ["top_k", "d_model"]) is None
    assert one_of("zzz", ["a", "b"]) == "one of a, b"


def test_values_are_written_as_in_yaml() -> None:
    assert [as_written(one) for one in (None, True, "", [1, None], "two\nlines")] == [
        "null",
        "true",
        "''",
        "[1, null]",
        "two lines",
    ]
