"""A custom router kind: its declarations are all that the rest of the code needs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

from mom.cost.estimate import flops_per_token
from mom.model import MoMConfig, MoMForCausalLM, registry
from mom.model.options import options_of, options_table
from mom.model.rules import options_from
from tests.helpers.models import small_model, tokens


@pytest.fixture(autouse=True, scope="module")
def example() -> Iterator[None]:
    registry.routers["bilinear"] = import_module("examples.bilinear_router").Bilinear
    yield
    del registry.routers["bilinear"]


def test_it_routes_and_learns(tmp_path) -> None:
    model, ids = small_model(router="bilinear", bilinear_rank=5, router_prior="looped"), tokens(2, 8)
    output = model(input_ids=ids, labels=ids, output_routing=True)
    output.loss.backward()
    router = model.model.stages[0].attention.router
    assert router.left.weight.shape == (5, 16) and float(router.left.weight.grad.abs().max()) > 0
    x = output.routing[0].attention.logits
    assert x.shape == (2, 8, 4)

    model.save_pretrained(tmp_path)
    again = MoMForCausalLM.from_pretrained(tmp_path)
    assert again.config.bilinear_rank == 5
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_its_option_and_cost_follow_from_its_declaration() -> None:
    config = MoMConfig(router="bilinear", d_model=16, num_heads=2)
    assert config.bilinear_rank == 32  # its default
    per_round = 2 * (2 * 16 * 32 + 32 * 5)
    assert flops_per_token(config, 8).routers == 8 * 2 * per_round
    assert "bilinear_rank" in options_of("router") and "`router.bilinear_rank` | 32" in options_table()
    for value in (0, 2.5, "many"):
        with pytest.raises(ValueError, match=f"^bilinear_rank must be an integer of at least 1, got {value}"):
            options_from({"router": "bilinear", "bilinear_rank": value})
