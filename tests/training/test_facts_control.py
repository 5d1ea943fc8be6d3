"""A small control that the shipped recipe passes, and that fails if SKIP or the routers do not learn.

Chains of two relations over a table of facts, relations first, so that only the context tells which relation applies.
The training is a bare PyTorch loop over the model's own loss, with the defaults of ``MoMConfig`` except for sizes and
``top_k: 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from mom.data.controls.facts import Facts
from mom.model import MoMConfig, MoMForCausalLM, Routing
from mom.model.routers.router import Router

CONTROL = Facts(entities=8, relations=4, order="operand_last", never_composed_fraction=0.0)
SIZES: dict[str, Any] = {
    "vocab_size": CONTROL.vocab_size,
    "max_positions": 8,
    "d_model": 32,
    "d_ffn": 64,
    "num_heads": 2,
    "num_bottom_blocks": 0,
    "num_top_blocks": 0,
    "anchors": False,
    "num_rounds": 3,
    "top_k": 1,
}
STEPS = 300


class Measured(NamedTuple):
    """Results on all chains that training had, SKIP's share of the choices included.

    Attributes:
        accuracy: fraction of right answers; chance is 1/8.
        confidence: mean weight of a token's choice. Routers start at 1/4, even odds among the modules.
    """

    accuracy: float
    confidence: float


def has_learned(measured: Measured) -> bool:
    """Return whether the model has learned the task and its routers to choose.

    With seeds 0 to 2, the shipped recipe has at least an accuracy of 0.85 and a confidence of 0.43. With a SKIP without
    gradient, or detached weights, tokens skip nearly everything, and accuracy is at most 0.3. With frozen routers,
    modules adapt to an arbitrary choice, and confidence is 0.27.
    """
    return measured.accuracy > 0.6 and measured.confidence > 0.35


def train(seed: int = 0, prepare: Callable[[MoMForCausalLM], None] | None = None, **options: Any) -> Measured:
    """Train a model for :data:`STEPS` steps and measure it."""
    torch.manual_seed(seed)
    model = MoMForCausalLM(MoMConfig(**SIZES, **options))
    if prepare is not None:
        prepare(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, betas=(0.9, 0.98), weight_decay=0.1)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    examples = CONTROL.training()
    for _ in range(STEPS):
        rows = torch.randint(len(examples.input_ids), (128,))
        loss = model(input_ids=examples.input_ids[rows], labels=examples.labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        warmup.step()

    model.eval()
    examples = CONTROL.validation()
    trained_on = examples.bucket != CONTROL.buckets.index(CONTROL.headline)
    ids = examples.input_ids[trained_on]
    with torch.no_grad():
        output = model(input_ids=ids, output_routing=True)
    right = output.logits[:, -2].argmax(-1) == ids[:, -1]
    weights = [choice.weights[..., 0].mean() for record in output.routing for choice in record]
    return Measured(right.float().mean().item(), torch.stack(weights).mean().item())


def freeze_routers(model: MoMForCausalLM) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            module.requires_grad_(False)


def test_the_shipped_recipe_learns_to_answer_to_skip_and_to_route() -> None:
    measured = train()
    assert has_learned(measured), measured


def test_a_skip_without_gradient_is_noticed() -> None:
    measured = train(skip_bias=0.0, skip_exploration=0.0)
    assert not has_learned(measured), measured


def test_weights_without_gradient_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Router.forward

    def detached(self: Router, *given: Any, **options: Any) -> tuple[Routing, Any]:
        routing, state = forward(self, *given, **options)
        return routing._replace(weights=routing.weights.detach()), state

    monkeypatch.setattr(Router, "forward", detached)
    measured = train()
    assert not has_learned(measured), measured


def test_frozen_routers_are_noticed() -> None:
    measured = train(prepare=freeze_routers)
    assert not has_learned(measured), measured
