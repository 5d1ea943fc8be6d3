"""The compute loss: the price of running modules that a token could skip."""

from __future__ import annotations

import pytest
import torch

from mom import MoMConfig, MoMForCausalLM
from mom.model.losses import compute_loss
from mom.model.options import ModelOptions
from mom.model.routing import RoundRouting, Routing

SIZES = {
    "vocab_size": 19,
    "max_positions": 8,
    "d_model": 16,
    "num_heads": 2,
    "num_bottom_blocks": 0,
    "num_top_blocks": 0,
    "num_rounds": 2,
}


def record(skip: list[list[float]]) -> Routing:
    """Return a record of two modules with these probabilities of SKIP, [B][T]."""
    p = torch.tensor(skip)
    scores = torch.stack([(1 - p) / 2, (1 - p) / 2, p], -1)
    return Routing(scores, scores.argmax(-1, keepdim=True), scores.amax(-1, keepdim=True), scores.log())


def test_averages_the_probability_of_running_over_real_tokens_and_priced_pools() -> None:
    rounds = [
        RoundRouting(record([[0.5, 0.0]]), record([[0.1, 1.0]])),
        RoundRouting(record([[0.25, 0.0]]), record([[0.3, 1.0]])),
    ]
    loss = torch.tensor(2.0, requires_grad=True)
    both = ModelOptions(**SIZES, top_k=1)
    assert compute_loss(both, rounds, None, loss).item() == pytest.approx(
        2 * (0.5 + 0.9 + 0.75 + 0.7 + 2) / 8
    )
    mask = torch.tensor([[1, 0]])
    assert compute_loss(both, rounds, mask, loss).item() == pytest.approx(2 * (0.5 + 0.9 + 0.75 + 0.7) / 4)
    only_ffn = ModelOptions(**SIZES, top_k=1, skip=False, ffn_skip=True)
    assert compute_loss(only_ffn, rounds, mask, loss).item() == pytest.approx(2 * (0.9 + 0.7) / 2)
    assert not compute_loss(both, rounds, None, loss).requires_grad  # the task's loss is only a scale


def test_is_part_of_the_loss_with_its_coefficient() -> None:
    torch.manual_seed(0)
    model = MoMForCausalLM(MoMConfig(**SIZES, top_k=1, compute_coefficient=0.5))
    ids = torch.randint(0, 19, (2, 6))
    output = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(output.loss, output.lm_loss + 0.5 * output.compute_loss)
    model.config.compute_coefficient = 0.0
    output = model(input_ids=ids, labels=ids)
    assert torch.equal(output.loss, output.lm_loss) and not output.compute_loss.requires_grad


def test_follows_the_scale_of_the_task_loss() -> None:
    torch.manual_seed(0)
    model = MoMForCausalLM(MoMConfig(**SIZES, top_k=1, skip_exploration=0.0))
    ids = torch.randint(0, 19, (2, 6))
    output = model(input_ids=ids, labels=ids, output_routing=True)
    runs = torch.stack(
        [1 - step.scores[..., -1].mean() for round_ in output.routing for step in round_]
    ).mean()
    torch.testing.assert_close(output.compute_loss, runs * output.lm_loss.detach())


def test_lowers_the_use_of_modules_that_do_nothing() -> None:
    torch.manual_seed(0)
    model = MoMForCausalLM(MoMConfig(**SIZES, top_k=1, compute_coefficient=1.0, skip_exploration=0.0)).train()
    ids = torch.randint(0, 19, (2, 6))
    output = model(input_ids=ids, labels=ids)
    (gradient,) = torch.autograd.grad(output.compute_loss, [model.model.stages[0].ffn.router.output.bias])
    assert gradient[-1] < 0 and (gradient[:-1] > 0).all()  # a step raises SKIP and lowers every module


@pytest.mark.parametrize(
    "options",
    [
        {"num_stages": 0},
        {"skip": False},
        {"top_k": 2},  # every token runs a module, so skipping saves nothing
        {"router": "random"},
        {"capacity": 0.5, "schedule": "layerwise"},
    ],
    ids=str,
)
def test_is_absent_where_no_router_learns_to_skip_a_step(options: dict) -> None:
    torch.manual_seed(0)
    model = MoMForCausalLM(MoMConfig(**{**SIZES, "top_k": 1, **options}))
    ids = torch.randint(0, 19, (2, 6))
    assert model(input_ids=ids, labels=ids).compute_loss is None
