"""The depth penalty: its definition, its gradient, and its effect in training."""

from __future__ import annotations

import pytest
import torch

from mom.metrics.depth import depth_metrics, depth_sums
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch

CHANGES = [
    {"top_k": 1, "depth_target": 5.0},
    {"top_k": 2, "skip_rule": "first", "depth_target": 4.5, "num_stages": 2, "num_ffn_modules": 4},
    {"top_k": 1, "depth_target": 6.0, "ffn_skip": False},
]


def padded(rows: int = 3, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, 5:] = 0
    return tokens(rows, length), mask


def measured_depth(model, routing, mask) -> float:
    """Measure depth like the callback."""
    config = model.config
    pools = [layout.name for layout in config.pools()]
    sums = depth_sums(
        routing,
        mask,
        pools,
    )
    return depth_metrics(sums, pools, fixed_depth=config.fixed_depth, graph_depth=config.graph_depth)[
        "effective"
    ]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_value_is_of_the_measured_depth_and_gradient_of_the_probabilities(changes):
    model = small_model(**changes)
    config = model.config
    ids, mask = padded()
    output = model(input_ids=ids, labels=ids, attention_mask=mask, output_routing=True)
    rounds = config.num_stages * config.num_rounds
    error = (measured_depth(model, output.routing, mask) - config.depth_target) / rounds
    assert abs(error) > 0.01
    assert float(output.depth_loss.detach()) == pytest.approx(error**2, rel=1e-4)
    expected = output.lm_loss + 0.01 * output.balance_loss + config.depth_coefficient * output.depth_loss
    torch.testing.assert_close(output.loss, expected)

    taken = [
        1 - step.scores[row, column, -1]
        for decided in output.routing
        for step in decided
        for row, column in mask.nonzero().tolist()
    ]
    surrogate = 2 * error * sum(taken) / len(taken)
    names = [name for name, _ in model.named_parameters() if "router" in name]
    parameters = [model.get_parameter(name) for name in names]
    ours = torch.autograd.grad(output.depth_loss, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(surrogate, parameters, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 1e-5 for gradient in theirs)
    for name, gradient, expected in zip(names, ours, theirs, strict=True):
        if expected is None:
            expected = torch.zeros_like(model.get_parameter(name))
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("target", [3.5, 4.75])
def test_training_reaches_the_target_depth(tmp_path, target):
    module = small_module(
        top_k=1, depth_target=target, depth_coefficient=10.0, balance_skip=False, optimizer={"lr": 3e-3}
    )
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [recorder], max_steps=60, limit_val_batches=0)
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed, rows=4) for seed in range(60)], []))

    def depth(outputs) -> float:
        found = [measured_depth(module.model, out["routing"], out["attention_mask"]) for out in outputs]
        return sum(found) / len(found)

    assert abs(depth(recorder.train_outputs[:3]) - target) > 0.5
    assert abs(depth(recorder.train_outputs[-10:]) - target) < 0.3
    last = recorder.logged[-1]
    assert last["train/routing_loss"] == pytest.approx(
        0.01 * last["train/balance_loss"] + 10 * last["train/depth_loss"], rel=1e-5
    )


def test_without_a_target_there_is_no_penalty_and_a_plain_model_has_none():
    ids = tokens(1, 4)
    assert small_model()(input_ids=ids, labels=ids).depth_loss is None
    plain = small_model(num_stages=0, depth_target=1.0)(input_ids=ids, labels=ids)
    assert torch.equal(plain.loss, plain.lm_loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 2}, "depth_target must be null with top_k 2 and skip_rule share"),
        ({"top_k": 1, "depth_target": 2.5}, "depth_target must be between 3 and 7, or null, got 2.5"),
        ({"top_k": 1, "depth_target": 7.5}, "depth_target must be between 3 and 7, or null, got 7.5"),
        (
            {"top_k": 1, "depth_target": 2.5, "absorbing_skip": True, "ffn_skip": False},
            "depth_target must be between 3 and 7, or null, got 2.5",
        ),
        (
            {"top_k": 1, "depth_target": 2.5, "absorbing_skip": True, "skip": False, "ffn_skip": True},
            "depth_target must be between 3.5 and 7, or null, got 2.5",
        ),
        (
            {"top_k": 1, "depth_target": 4.5, "skip": False, "ffn_skip": True},
            "depth_target must be between 5 and",
        ),
        ({"top_k": 1, "router": "random"}, "depth_target must be null with router random"),
        ({"top_k": 1, "depth_coefficient": -1}, "depth_coefficient must be a number of at least 0, got -1"),
    ],
)
def test_an_unreachable_target_is_rejected(changes, message):
    with pytest.raises(ValueError) as error:
        small_config(**({"depth_target": 5} | changes))
    assert str(error.value).startswith(message)
