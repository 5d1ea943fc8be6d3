"""Losses of a short training against recorded losses, so that numbers change only on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mom.interop import plain_config, upcycle
from mom.model import MoMForCausalLM
from mom.training.optimizer import build_optimizer
from tests.helpers.models import small_config, tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-5, "router_lr_multiplier": 1.0}
PRIOR = {"router_prior": "looped", "router_prior_strength": 5.0, "temperature": 0.2, "skip_bias": -3.0}
RECIPE = {"skip_bias": -3.0, "skip_exploration": 0.5, "skip_trials": 0.1, "skip_price": 0.01}


def losses(model: MoMForCausalLM, steps: int = 6) -> list[float]:
    """Return the total loss of each step on one repeated batch."""
    optimizer, ids = build_optimizer(model.train(), OPTIONS), tokens(4, 24)
    measured = []
    for _ in range(steps):
        output = model(input_ids=ids, labels=ids, output_logits=False)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        measured.append(float(output.loss.detach()))
    return measured


def train(name: str) -> list[float]:
    """Train a plain transformer, an upcycled MoM, or a MoM from scratch."""
    torch.manual_seed(0)
    if name == "plain":
        return losses(MoMForCausalLM(plain_config(small_config())))
    if name == "mom":
        return losses(MoMForCausalLM(small_config(top_k=1, **RECIPE)))
    plain = MoMForCausalLM(plain_config(small_config(**PRIOR)))
    losses(plain)
    return losses(upcycle(plain, small_config(**PRIOR)))


@pytest.mark.parametrize("name", ["plain", "mom", "upcycled"])
def test_losses_are_the_ones_written_down(name):
    assert train(name) == pytest.approx(json.loads(GOLDEN.read_text())[name], abs=2e-3)


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({name: train(name) for name in ("plain", "mom", "upcycled")}, indent=1) + "\n"
    )
