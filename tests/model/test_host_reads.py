"""A training step asks for no value of a tensor, which would make a GPU wait: the meta device has none to give."""

from __future__ import annotations

import pytest
import torch

from mom.model import MoMForSequenceClassification
from tests.helpers.models import small_config, small_model

VARIANTS = [
    {},
    {"top_k": 1, "router": "linear", "skip_trials": 0.1, "skip_exploration": 0.5},
    {"top_k": 1, "capacity": 0.5, "absorbing_skip": True},
    {"router": "mlp", "skipped_kv": "mask", "schedule": "layerwise", "router_prior": "ordered"},
    {"block": "llama", "qk_norm": True, "balance_coefficient": 0.01, "z_loss_coefficient": 0.01},
    {"top_k": 1, "depth_target": 4.0, "depth_coefficient": 0.1, "balance_bias_rate": 0.1},
    {"num_stages": 0},
]


def meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_step_of_the_language_model(changes):
    model = small_model(**changes).train().to("meta")
    ids = meta(2, 8)
    output = model(input_ids=ids, labels=ids, output_logits=False, num_items_in_batch=meta())
    output.loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "norm" in name)


def test_a_step_of_the_classifier():
    model = MoMForSequenceClassification(small_config(num_labels=3, pad_token_id=0)).train().to("meta")
    model(input_ids=meta(2, 8), labels=meta(2)).loss.backward()
    assert model.score.weight.grad is not None
