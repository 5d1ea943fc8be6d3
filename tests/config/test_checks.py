"""Checks of single values: types, ranges, names, and error messages."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest

from mom.config.checks import conform, describe, in_range, is_plain, known_names
from mom.config.renamed import RENAMED, VALUES_ELSEWHERE
from mom.config.training import TrainerConfig
from mom.errors import UsageError, as_written, did_you_mean, either, nearest, unknown_choice

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
def test_misfits_are_rejected_with_what_is_allowed(value: Any, hint: Any) -> None:
    with pytest.raises(UsageError) as raised:
        conform("group.name", value, hint)

    assert str(raised.value) == f"group.name must be {describe(hint)}, got {as_written(value)}"


def test_a_misspelled_choice_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^x must be cosine or constant, got cosin; did you mean cosine\?$"):
        conform("x", "cosin", Literal["cosine", "constant"])


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "an integer or null"),
        (int | float | None, "an integer, a number, or null"),
        (Literal["a", "b"] | None, "one of a, b, null"),
        (bool | Literal["warn"] | None, "one of true, false, warn, null"),
        (int | Literal["all"] | None, "an integer, all, or null"),
        (bool, "true or false"),
        (tuple[float, float], "a list of 2 numbers"),
        (Literal["64", 64], "64"),
        (list[int], "a list of integers"),
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
        (0, {"ge": 1}),
        (0.0, {"gt": 0}),
        (1.5, {"le": 1}),
        (1.0, {"lt": 1}),
        (float("nan"), {"ge": 0}),
        (float("inf"), {"ge": 0}),
    ],
)
def test_numbers_out_of_range_are_rejected(value: float, bounds: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"^x must be "):
        in_range("x", value, **bounds)


@pytest.mark.parametrize(
    "number", [math.inf, -math.inf, math.nan, 10**400], ids=["inf", "-inf", "nan", "huge"]
)
@pytest.mark.parametrize(
    ("hint", "wrap", "name"),
    [
        (float, lambda number: number, "x"),
        (int | float | None, lambda number: number, "x"),
        (tuple[float, float], lambda number: [0.9, number], "x"),
        (dict, lambda number: {"a": {"b": number}}, "x.a.b"),
    ],
)
def test_no_option_takes_a_number_that_is_not_finite(hint: Any, wrap: Any, name: str, number: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{name} must be a finite number, got "):
        conform("x", wrap(number), hint)


def test_numbers_on_the_bound_and_none_pass() -> None:
    in_range("x", 1, ge=1, le=1)
    in_range("x", None, ge=1)


def test_a_range_is_written_in_digits() -> None:
    with pytest.raises(UsageError) as raised:
        in_range("seed", -1, ge=0, le=2**32 - 1)

    assert str(raised.value) == "seed must be between 0 and 4,294,967,295, got -1"


def test_unknown_names_are_rejected_with_the_nearest_or_the_list() -> None:
    with pytest.raises(
        UsageError, match=r"^unknown option data\.batch_sise; did you mean data\.batch_size\?$"
    ):
        known_names("data", {"batch_sise": 1}, ["path", "batch_size"])
    with pytest.raises(
        UsageError, match=r"^unknown option data\.zzz; the options of data are path, batch_size$"
    ):
        known_names("data", {"zzz": 1}, ["path", "batch_size"])


def test_nearest_ignores_case_and_gives_up_when_nothing_is_near() -> None:
    assert nearest("TopK", ["top_k", "d_model"]) == "top_k"
    assert nearest("zzz", ["top_k", "d_model"]) is None
    assert did_you_mean("zzz", ["a", "b"]) == ""
    assert (
        str(unknown_choice("x", "bb", ["abb", "c", "d"]))
        == "x must be one of abb, c, d, got bb; did you mean abb?"
    )


def test_values_are_written_as_in_yaml() -> None:
    assert [as_written(one) for one in (None, True, "", [1, None], "two\nlines")] == [
        "null",
        "true",
        "''",
        "[1, null]",
        "two lines",
    ]


def test_alternatives_are_joined_as_in_a_sentence() -> None:
    assert [either(list(names)) for names in ("a", "ab", "abc")] == ["a", "a or b", "a, b, or c"]


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_answered_with_the_new_one(old: str, new: str) -> None:
    group, _, name = old.rpartition(".")

    with pytest.raises(UsageError, match=rf"^{old} was renamed to {new}$"):
        known_names(group, {name: 1}, ["other"])


@pytest.mark.parametrize(("option", "name"), VALUES_ELSEWHERE)
def test_a_value_by_another_name_is_answered_with_ours(option: str, name: str) -> None:
    meant = VALUES_ELSEWHERE[option, name]
    _, field = option.split(".")
    with pytest.raises(UsageError, match=rf"got {name}; did you mean {meant}\?$"):
        TrainerConfig(**{field: name})
    assert getattr(TrainerConfig(**{field: meant}), field) == meant
