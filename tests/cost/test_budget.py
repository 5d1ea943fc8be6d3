"""The solver, compared with an exhaustive search."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mom.cost.budget import DEFAULT_FIELD, FIELDS, costs, options_of, solve, with_value
from tests.helpers.models import small_config

MEASURES = costs(length=16, batch_size=2, number_bytes=4)


def tried(config, field, limit, cost) -> int | None:
    """Return the largest of the values up to 16 that fits, by exhaustive search."""
    made = {value: with_value(config, field, value) for value in range(1, 17)}
    fitting = [
        value for value, candidate in made.items() if candidate is not None and cost(candidate) <= limit
    ]
    return max(fitting, default=None)


@settings(max_examples=12, deadline=None)
@given(
    budget=st.sampled_from(sorted(MEASURES)),
    field=st.sampled_from(sorted(FIELDS)),
    share=st.floats(0.5, 3.0),
    schedule=st.sampled_from(["all", "layerwise"]),
)
def test_solves_for_the_largest_that_fits(budget, field, share, schedule):
    config, cost = small_config(schedule=schedule), MEASURES[budget]
    limit = cost(config) * share
    assert solve(config, field, limit, cost, most=16) == tried(config, field, limit, cost)


def test_nothing_fits_a_budget_below_the_smallest():
    assert solve(small_config(), "modules", 10, MEASURES["params"]) is None


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_can_be_set_to_valid_values_only(field):
    made = with_value(small_config(), field, 2)
    assert made is not None and {getattr(made, name) for name in options_of(made, field)} == {2}
    assert with_value(small_config(), field, 0) is None
    assert set(DEFAULT_FIELD) == set(MEASURES) and set(DEFAULT_FIELD.values()) <= set(FIELDS)
