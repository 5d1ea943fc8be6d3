"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mom.training.optimizer import build_optimizer, build_schedule, learning_rate_factor, parameter_groups
from tests.helpers.models import small_model
from tests.helpers.runs import OPTIMIZER

VECTORS_OF_A_STAGE = {
    "norm_weight",
    "norm_bias",
    "qkv_bias",
    "out_bias",
    "fc_bias",
    "proj_bias",
    "q_norm_weight",
    "k_norm_weight",
}


def groups_by_name(model: nn.Module, **options: float) -> dict[str, dict]:
    """Return the groups with the names of their parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **({"lr": 1.0, "weight_decay": 0.1} | options))
    return {
        group["name"]: group | {"names": {names[id(parameter)] for parameter in group["params"]}}
        for group in groups
    }


@pytest.mark.parametrize("block", ["gpt2", "llama"])
@pytest.mark.parametrize("router", ["gru", "mlp", "linear", "embedding"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(router, block):
    model = small_model(router=router, router_prior="ordered", block=block, qk_norm=block == "llama")
    groups = groups_by_name(model, router_lr_multiplier=5.0)
    assert sum(len(group["names"]) for group in groups.values()) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        of_router = ".router." in name
        stacked = ".pool." in name
        last = name.rsplit(".", 1)[1]
        is_vector = last in VECTORS_OF_A_STAGE if stacked else parameter.ndim < 2 or last == "prior"
        group = groups[("router_" if of_router else "") + ("vectors" if is_vector else "matrices")]
        assert name in group["names"]
        assert group["weight_decay"] == (0.0 if is_vector else 0.1)
        assert group["lr"] == (5.0 if of_router else 1.0)


def test_stacked_vectors_and_the_prior_are_not_taken_for_matrices():
    groups = groups_by_name(small_model(router_prior="ordered"))
    matrices = groups["matrices"]["names"] | groups["router_matrices"]["names"]
    assert "model.stages.0.attention.pool.qkv_weight" in matrices
    assert "model.embedding.token.weight" in matrices
    vectors = groups["vectors"]["names"] | groups["router_vectors"]["names"]
    for name in ("attention.pool.norm_weight", "attention.pool.qkv_bias", "ffn.pool.fc_bias"):
        assert f"model.stages.0.{name}" in vectors
    assert "model.stages.0.attention.router.prior" in vectors


def test_a_plain_model_has_no_router_groups_and_the_tied_head_counts_once():
    model = small_model(num_stages=0)
    groups = groups_by_name(model)
    assert groups.keys() == {"matrices", "vectors"}
    assert "lm_head.weight" not in groups["matrices"]["names"]


def test_frozen_parameters_stand_in_no_group():
    model = small_model(num_stages=0)
    model.model.embedding.requires_grad_(False)
    assert "model.embedding.token.weight" not in groups_by_name(model)["matrices"]["names"]


def test_decay_moves_matrices_only():
    model = small_model(router_prior="ordered")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OPTIMIZER | {"lr": 0.5, "weight_decay": 0.1})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    groups = groups_by_name(model)
    assert decayed == groups["matrices"]["names"] | groups["router_matrices"]["names"]


def test_warm_up_rises_evenly_to_the_peak_and_the_cosine_ends_at_its_floor():
    options = {"warmup_steps": 4, "max_steps": 14, "min_lr_ratio": 0.1}
    curve = [learning_rate_factor(step, **options) for step in range(16)]
    assert curve[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert curve[14:] == pytest.approx([0.1, 0.1])
    assert all(a > b for a, b in pairwise(curve[4:15]))


def test_constant_stays_at_the_peak():
    options = {"warmup_steps": 1, "max_steps": 4, "min_lr_ratio": 0.0, "schedule": "constant"}
    assert [learning_rate_factor(step, **options) for step in range(6)] == [0.5, 1, 1, 1, 1, 1]


def test_the_schedule_scales_every_group_alike():
    model = small_model()
    optimizer = build_optimizer(model, OPTIMIZER | {"router_lr_multiplier": 3.0})
    scheduler = build_schedule(optimizer, OPTIMIZER | {"warmup_steps": 1}, max_steps=10)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    factor = learning_rate_factor(3, warmup_steps=1, max_steps=10, min_lr_ratio=0.1)
    assert rates["matrices"] == rates["vectors"] == pytest.approx(OPTIMIZER["lr"] * factor)
    assert rates["router_matrices"] == pytest.approx(3 * rates["matrices"])
