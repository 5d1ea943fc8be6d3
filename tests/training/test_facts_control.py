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
        confidence: mean probability of the best module, SKIP apart. Routers start at 1/4, even odds.
        runs: fraction of steps that run a module.
    """

    accuracy: float
    confidence: float
    runs: float


def has_learned(measured: Measured) -> bool:
    """Return whether the model has learned the task, its routers to choose, and SKIP to be chosen where it can be.

    With seeds 0 to 2, the shipped recipe has at least an accuracy of 0.88 and a confidence of 0.48, and runs 0.83 to
    0.88 of the steps. With a SKIP without gradient, every step runs a module. With frozen routers, modules adapt to an
    arbitrary choice, and confidence is 0.29.
    """
    return measured.accuracy > 0.7 and measured.confidence > 0.4 and 0.5 < measured.runs < 0.95


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
    choices = [choice for record in output.routing for choice in record]
    best = torch.stack([choice.logits[..., : choice.num_modules].softmax(-1).amax(-1) for choice in choices])
    runs = torch.stack([choice.took_module.float() for choice in choices])
    return Measured(right.float().mean().item(), best.mean().item(), runs.mean().item())


def freeze_routers(model: MoMForCausalLM) -> None:
    for module in model.modules():
        if isinstance(module, Router):
            module.requires_grad_(False)


def test_the_shipped_recipe_learns_to_answer_to_skip_and_to_route() -> None:
    measured = train()
    assert has_learned(measured), measured


def test_a_skip_without_gradient_is_noticed() -> None:
    measured = train(skip_trials=0.0)
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
