"""The auxiliary losses, compared with their formulas token by token."""

from __future__ import annotations

import pytest
import torch

from mom.model import MoMForCausalLM, MoMForSequenceClassification
from mom.model.losses import balance_loss, choice_counts, moved_bias, z_loss
from tests.helpers.models import small_config, small_model, tokens


def formula(decided, name: str, mask: torch.Tensor, include_skip: bool) -> float:
    """Compute N' · Σ f_i P_i of a pool by counting."""
    size = getattr(decided[0], name).scores.shape[-1]
    counts, sums = [0.0] * size, [0.0] * size
    for routing in (getattr(record, name) for record in decided):
        for row, column in mask.nonzero().tolist():
            for choice in routing.selected[row, column].tolist():
                counts[choice] += 1
            for slot, score in enumerate(routing.scores[row, column].tolist()):
                sums[slot] += score
    if not include_skip:
        counts, sums, size = counts[:-1], sums[:-1], size - 1
    return size * sum(c / sum(counts) * s / sum(sums) for c, s in zip(counts, sums, strict=True))


@pytest.mark.parametrize("include_skip", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_balance_loss_is_the_formula_summed_over_pools_without_padding(include_skip, padded):
    model = small_model(num_stages=2, balance_skip=include_skip, num_ffn_modules=4)
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    if padded:
        mask[0, 5:] = 0
    output = model(input_ids=ids, labels=ids, attention_mask=mask if padded else None, output_routing=True)
    stages = output.routing[:4], output.routing[4:]
    expected = sum(
        formula(stage, name, mask, include_skip) for stage in stages for name in ("attention", "ffn")
    )
    assert float(output.balance_loss) == pytest.approx(expected, rel=1e-5)
    assert float(output.loss) == pytest.approx(float(output.lm_loss) + 0.01 * expected, rel=1e-6)


def test_perfect_balance_is_one_per_pool_and_collapse_costs_more():
    model = small_model(top_k=1)
    ids = tokens(4, 16)
    for part in (model.model.stages[0].attention, model.model.stages[0].ffn):
        with torch.no_grad():
            part.router.output.weight.zero_()
            part.router.output.bias.copy_(torch.tensor([6.0, 0.0, 0.0, 0.0]))
    collapsed = model(input_ids=ids, labels=ids).balance_loss
    assert float(collapsed) == pytest.approx(
        2 * 4 * float(torch.tensor([12.0, 0, 0, 0]).softmax(0)[0]), rel=1e-4
    )
    random = small_model(router="random", top_k="all")
    assert float(random(input_ids=ids, labels=ids).balance_loss) == pytest.approx(2.0, rel=1e-5)


def test_balance_loss_pushes_the_router_away_from_collapse():
    model = small_model(top_k=1)
    ids = tokens(4, 16)
    output = model(input_ids=ids, labels=ids, output_routing=True)
    router = model.model.stages[0].ffn.router
    (gradient,) = torch.autograd.grad(output.balance_loss, router.output.bias)
    load = torch.stack([record.ffn.selected for record in output.routing]).flatten().bincount(minlength=4)
    assert float(gradient[load.argmax()]) > 0 > float(gradient[load.argmin()])


def test_z_loss_is_the_mean_square_of_logsumexp():
    model = small_model(z_loss_coefficient=0.5)
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    mask[1, 4:] = 0
    output = model(input_ids=ids, labels=ids, attention_mask=mask, output_routing=True)
    squares = [
        float(step.logits[row, column].logsumexp(0)) ** 2
        for decided in output.routing
        for step in decided
        for row, column in mask.nonzero().tolist()
    ]
    assert float(output.z_loss) == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    expected = output.lm_loss + 0.01 * output.balance_loss + 0.5 * output.z_loss
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("coefficient", [0.0, 1e-3])
@pytest.mark.parametrize("head", [MoMForCausalLM, MoMForSequenceClassification])
def test_a_term_with_coefficient_0_is_reported_but_not_part_of_the_loss(head, coefficient):
    """It may be infinite, and 0 times infinity is NaN."""
    options = {"temperature": 1e-25, "depth_target": 3.0, "depth_coefficient": 0.0, "top_k": 1}
    options |= {"balance_coefficient": coefficient, "z_loss_coefficient": 0.0}
    model = head(small_config(initializer_range=0.3, **options))
    labels = tokens(2, 8) if head is MoMForCausalLM else torch.tensor([0, 1])
    output = model(input_ids=tokens(2, 8), attention_mask=torch.ones(2, 8), labels=labels)
    task_loss = output.lm_loss if head is MoMForCausalLM else output.task_loss
    assert torch.isinf(output.z_loss) and output.depth_loss > 0
    torch.testing.assert_close(output.loss, task_loss + coefficient * output.balance_loss)
    assert not output.z_loss.requires_grad and not output.depth_loss.requires_grad
    assert output.balance_loss.requires_grad == (coefficient > 0)
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("padded", [True, False])
def test_counts_are_those_of_all_assignments_of_every_pool(padded):
    model = small_model(num_stages=2, num_ffn_modules=4)
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    if padded:
        mask[0, 5:] = 0
    routing = model(input_ids=ids, attention_mask=mask, output_routing=True).routing
    counts = choice_counts(routing, 4, mask if padded else None)
    for pool, (stage, name) in enumerate((s, n) for s in (0, 1) for n in ("attention", "ffn")):
        expected = [0] * (5 if name == "ffn" else 4)
        for decided in routing[4 * stage : 4 * stage + 4]:
            for row, column in mask.nonzero().tolist():
                for choice in getattr(decided, name).selected[row, column].tolist():
                    expected[choice] += 1
        assert counts[pool].tolist() == expected


def test_a_bias_moves_loads_towards_the_mean_of_reachable_choices():
    def moved(counts, *, open_choices=(True, True, True, True), include_skip=True):
        bias = torch.tensor([0.0, 1.0, 0.0, 0.0])
        after = moved_bias(
            bias,
            torch.tensor(counts),
            0.5,
            open_choices=torch.tensor(open_choices),
            include_skip=include_skip,
        )
        return (after - bias).tolist()

    assert moved([4, 0, 2, 2]) == [-0.5, 0.5, 0.0, 0.0]
    assert moved([4, 1, 4, 0], include_skip=False) == [-0.5, 0.5, -0.5, 0.0]
    assert moved([4, 1, 4, 0], open_choices=(True, True, True, False)) == [-0.5, 0.5, -0.5, 0.0]
    assert moved([6, 0, 6, 0], open_choices=(True, False, True, False)) == [0.0, 0.0, 0.0, 0.0]
    assert moved([2, 2, 2, 2]) == [0.0, 0.0, 0.0, 0.0]


def test_a_plain_model_has_none():
    assert float(balance_loss((), 1)) == 0 and float(z_loss(())) == 0
    model = small_model(num_stages=0)
    output = model(input_ids=tokens(1, 4), labels=tokens(1, 4), output_routing=True)
    assert output.routing == () and torch.equal(output.loss, output.lm_loss)
