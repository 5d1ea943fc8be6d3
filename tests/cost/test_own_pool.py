"""The cost of a model with a third pool of a custom kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mom.cost.budget import costs, options_of, solve, with_value
from mom.cost.estimate import (
    flops_per_token,
    forward_memory,
    kv_cache_bytes_per_token,
    measured_usage,
    nominal_usage,
    num_active_parameters,
    num_parameters,
)
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.plugins import THREE_POOLS, causal_conv


@pytest.fixture(autouse=True, scope="module")
def example() -> Iterator[None]:
    with causal_conv():
        yield


def test_every_cost_counts_the_third_pool():
    config, two = small_config(pools=THREE_POOLS), small_config()
    conv = config.pools()[1]
    kernel = conv.kind.kernel_size
    assert nominal_usage(config) == {"attention": 2.0, "causal_conv": 2.0, "ffn": 2.0}
    ours, theirs = flops_per_token(config, 16), flops_per_token(two, 16)
    assert ours.modules - theirs.modules == config.num_rounds * 2 * 2 * (kernel * 16 + 16 * 16)
    assert (ours.blocks, ours.attention, ours.head) == (theirs.blocks, theirs.attention, theirs.head)
    assert ours.routers - theirs.routers == config.num_rounds * conv.router.flops(config, conv)
    model = small_model(pools=THREE_POOLS)
    weights = sum(weight.numel() for weight in model.model.stages[0].causal_conv.parameters())
    assert num_parameters(config) - num_parameters(two) == weights
    assert num_active_parameters(config, nominal_usage(config)) <= num_parameters(config)
    extra = kv_cache_bytes_per_token(config, 1) - kv_cache_bytes_per_token(two, 1)
    assert extra == config.num_rounds * conv.kind.cached_numbers(config)
    ours, theirs = forward_memory(config, 2, 16), forward_memory(two, 2, 16)
    assert ours.cache - theirs.cache == 2 * 16 * 4 * extra
    # Its router's state, and for each round scores and logits in 4 bytes, two weights in 4, and two choices in 8.
    record = 4 * 2 * (conv.num_modules + 1) + 2 * (4 + 8)
    assert ours.activations - theirs.activations == 2 * 16 * (4 * 8 + config.num_rounds * record)


def test_usage_is_measured_for_each_pool():
    model = small_model(pools=THREE_POOLS)
    usage = measured_usage(model.config, model(input_ids=tokens(2, 8), output_routing=True).routing)
    assert list(usage) == THREE_POOLS
    assert all(0 < value <= 2 for value in usage.values())


def test_a_budget_varies_every_pool_together():
    config, cost = small_config(pools=THREE_POOLS), costs(16, 2, 4)["params"]
    assert options_of(config, "modules") == tuple(f"pools.{name}.num_modules" for name in THREE_POOLS)
    larger = with_value(config, "modules", 5)
    assert larger is not None and {layout.num_modules for layout in larger.pools()} == {5}
    assert solve(config, "modules", cost(larger), cost, most=8) == 5
