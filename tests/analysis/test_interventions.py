"""Similarity and ablation of modules, compared with direct computations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from mom.analysis.interventions import (
    can_spare,
    list_modules,
    mean_loss,
    measure_removal,
    measure_similarity,
    module_outputs,
    num_passes,
    output_similarity,
    weight_similarity,
    without,
)
from mom.analysis.samples import Batch
from mom.metrics.modules import Module, Removal
from mom.model import MoMForCausalLM
from tests.helpers.models import small_model, tokens
from tests.model.test_without import built_without


def texts(batches: list[torch.Tensor]) -> list[Batch]:
    return [Batch.of_text(ids) for ids in batches]


def loss_of(model: MoMForCausalLM, batches: list[torch.Tensor]) -> float:
    """Return the mean loss over all predictions, from complete logits."""
    sums = []
    for ids in batches:
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        sums.append(-log_p.gather(-1, ids[:, 1:, None]))
    return float(torch.cat([losses.flatten() for losses in sums]).mean())


def test_the_loss_without_a_module_is_that_of_a_model_built_without_it() -> None:
    model, batches = small_model(), [tokens(2, 12), tokens(1, 7, seed=1)]
    measured = measure_removal(model, texts(batches))
    expected = {
        Module(0, kind, number): loss_of(built_without(model, {(0, kind): [number]}), batches)
        for kind in ("attention", "ffn")
        for number in range(3)
    }

    assert measured.tokens == 2 * 11 + 6
    assert measured.loss == pytest.approx(loss_of(model, batches), rel=1e-5)
    assert measured.alone == {module: pytest.approx(loss, rel=1e-5) for module, loss in expected.items()}
    # Repeatedly remove the module with the smallest loss increase; K = 2 requires one of three modules and SKIP.
    removed: list[Module] = []
    for module, loss in measured.greedy:
        losses = {}
        for other in list_modules(model):
            if other not in removed:
                dropped: dict[tuple[int, str], list[int]] = {}
                for absent in [*removed, other]:
                    dropped.setdefault((0, absent.kind), []).append(absent.number)
                if max(map(len, dropped.values())) <= 2:
                    losses[other] = loss_of(built_without(model, dropped), batches)
        assert loss == pytest.approx(min(losses.values()), rel=1e-5)
        assert losses[module] == pytest.approx(loss, rel=1e-5)
        removed.append(module)
    assert len(removed) == 4


def test_one_at_a_time_and_its_number_of_passes() -> None:
    model, batches = small_model(top_k=1), [tokens(1, 8)]
    for greedy in (False, True):
        passes: list[int] = []
        measured = measure_removal(model, texts(batches), greedy=greedy, on_progress=passes.append)
        assert len(measured.alone) == 6
        assert len(measured.greedy) == (6 if greedy else 0)
        assert sum(passes) == num_passes(model, greedy=greedy)


def test_no_module_of_a_sequential_model_is_removable() -> None:
    model, batches = small_model(router="sequential"), [tokens(1, 8)]
    measured = measure_removal(model, texts(batches))

    assert (measured.alone, measured.greedy) == ({}, [])
    assert not can_spare(model, [Module(0, "ffn", 0)])
    with (
        pytest.raises(ValueError, match=r"^cannot remove modules \[0\] of the ffn pool"),
        without(model, [Module(0, "ffn", 0)]),
    ):
        pass


def test_which_modules_are_removable() -> None:
    first, second, third = (Module(0, "ffn", number) for number in range(3))
    measured = Removal(2.0, {}, [(second, 2.05), (first, 1.99), (third, 2.5)], 10)

    assert measured.droppable(0.0) == [second, first]
    assert measured.droppable(0.5) == [second, first, third]
    assert Removal(2.0, {}, [(first, 2.1)], 10).droppable(0.05) == []


@pytest.mark.parametrize(
    "changes", [{}, {"num_stages": 2, "weight_qkv": True, "skipped_kv": "mask"}], ids=str
)
def test_the_output_of_a_module_chosen_alone(changes: dict[str, object]) -> None:
    """It equals the update of a step in a model with only that module and K = 1, from the same residual stream."""
    model, ids = small_model(**changes), tokens(2, 8)
    rows = 2 * 8 * model.config.num_rounds  # every token of every round
    found = module_outputs(model, texts([ids]), rows, seed=3)
    assert set(found) == {(s, k) for s in range(model.config.num_stages) for k in ("attention", "ffn")}
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(16, generator=generator) for _ in range(model.config.num_rounds)]
    with torch.no_grad():
        states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    for stage, parts in enumerate(model.model.stages):
        first = 1 + stage * (model.config.num_rounds + 1)
        for number in range(3):
            expected = []
            for index, order in enumerate(orders):
                x = states[first + index].detach()
                with torch.no_grad():
                    pool = parts.attention.pool
                    normal = torch.nn.functional.layer_norm(
                        x, (16,), pool.norm_weight[number], pool.norm_bias[number], eps=1e-5
                    )
                    qkv = normal @ pool.qkv_weight[number] + pool.qkv_bias[number]
                    q, k, v = qkv.view(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
                    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                    mixed = mixed.transpose(1, 2).reshape(2, 8, 16)
                    out = mixed @ pool.out_weight[number] + pool.out_bias[number]
                expected.append(out.flatten(0, 1)[order])
            torch.testing.assert_close(
                found[stage, "attention"][number], torch.cat(expected), atol=1e-5, rtol=1e-4
            )
    assert found[0, "ffn"].shape == (3, rows, 16)


def test_similarity_of_outputs_follows_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 30, 5, generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    outputs[3] = 2.5 * outputs[0] @ rotation + 1.0  # CKA is invariant to rotation, scale, and shift
    cosine, cka = output_similarity(outputs)
    for i, j in combinations(range(4), 2):
        x, y = outputs[i].double().numpy(), outputs[j].double().numpy()
        each = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert float(cosine[i, j]) == pytest.approx(each.mean())
        x, y = x - x.mean(0), y - y.mean(0)
        kernel = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
        assert float(cka[i, j]) == pytest.approx(kernel)
    assert float(cka[0, 3]) == pytest.approx(1.0)
    assert float(cka[0, 1]) < 0.9


def test_copies_of_a_module_are_similar() -> None:
    model, batches = small_model(), [tokens(2, 12)]
    pool = model.model.stages[0].ffn.pool
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter[2] = parameter[0]
        # The same function in another form: the LayerNorm's scale is folded into the projection.
        pool.fc_weight[2] *= pool.norm_weight[0][:, None]
        pool.norm_bias[2] /= pool.norm_weight[0]
        pool.norm_weight[2] = 1.0
    pairs = {
        (p.first.kind, p.first.number, p.second.number): p
        for p in measure_similarity(model, texts(batches), 32)
    }

    assert len(pairs) == 6
    assert pairs["ffn", 0, 2][2:] == pytest.approx((1.0, 1.0, 1.0), abs=1e-4)
    assert abs(pairs["ffn", 0, 1].weights) < 0.5
    assert torch.equal(weight_similarity(pool), weight_similarity(pool).T)


def test_mean_loss_weighs_every_prediction_once() -> None:
    model, batches = small_model(), [tokens(3, 9), tokens(1, 2, seed=5)]

    assert mean_loss(model, texts(batches)) == pytest.approx(loss_of(model, batches), rel=1e-5)
