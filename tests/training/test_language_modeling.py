"""The language-modeling module: it logs the losses that are minimized, and its checkpoints are plain data."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from mom.model import MoMConfig, MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch


def test_train_losses_are_means_over_the_micro_batches_of_a_step(tmp_path):
    batches = [token_batch(seed) for seed in range(4)]
    module = small_module(z_loss_coefficient=0.1)
    twin = small_module(z_loss_coefficient=0.1)
    with torch.no_grad():
        outputs = [twin.model(**batch) for batch in batches[:2]]
    recorder = Recorder()
    options = {"max_steps": 2, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    plain_trainer(tmp_path, [recorder], **options).fit(module, datamodule=FixedBatches(batches, []))
    logged = recorder.logged[1]
    for name in ("loss", "lm_loss", "balance_loss", "z_loss"):
        wanted = sum(float(getattr(output, name)) for output in outputs) / 2
        assert logged[f"train/{name}"] == pytest.approx(wanted, rel=1e-6)
    assert recorder.logged[3]["train/loss"] != logged["train/loss"]


def answers_only(batch: dict[str, torch.Tensor], num_answers: int) -> dict[str, torch.Tensor]:
    """Return a batch whose labels are the last tokens of its first row, as in summarization."""
    labels = torch.full_like(batch["labels"], -100)
    labels[0, -num_answers:] = batch["input_ids"][0, -num_answers:]
    return batch | {"labels": labels}


def test_train_losses_are_means_over_tokens_if_micro_batches_differ(tmp_path):
    batches = [answers_only(token_batch(0, rows=3), 7), answers_only(token_batch(1, padded=7), 1)]
    changes = {"z_loss_coefficient": 0.1, "balance_coefficient": 0.5, "depth_target": 4.0, "top_k": 1}
    module, twin = small_module(**changes), small_module(**changes)
    with torch.no_grad():
        outputs = [twin.model(**batch) for batch in batches]
    recorder = Recorder()
    options = {"max_steps": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    plain_trainer(tmp_path, [recorder], **options).fit(module, datamodule=FixedBatches(batches, []))
    logged = recorder.logged[1]

    def mean(name: str, weights: tuple[int, int]) -> float:
        values = [float(getattr(output, name)) for output in outputs]
        assert abs(values[0] - values[1]) > 1e-3
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    predicted, real = (7, 1), (24, 9)
    routing = {name: mean(name, real) for name in ("balance_loss", "z_loss", "depth_loss")}
    for name, wanted in ({"lm_loss": mean("lm_loss", predicted)} | routing).items():
        assert logged[f"train/{name}"] == pytest.approx(wanted, rel=1e-5), name
    config = module.model.config
    weighted = 0.5 * routing["balance_loss"] + 0.1 * routing["z_loss"]
    weighted += config.depth_coefficient * routing["depth_loss"]
    assert logged["train/routing_loss"] == pytest.approx(weighted, rel=1e-5)
    assert logged["train/loss"] == pytest.approx(mean("lm_loss", predicted) + weighted, rel=1e-5)


def test_a_batch_without_labels_does_not_count(tmp_path):
    full, none = token_batch(0), token_batch(1)
    none["labels"] = torch.full_like(none["labels"], -100)
    module = small_module()
    trainer = plain_trainer(tmp_path, [])
    trainer.validate(module, datamodule=FixedBatches([], [full]), verbose=False)
    alone = float(trainer.callback_metrics["val/loss"])
    trainer.validate(module, datamodule=FixedBatches([], [full, none]), verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == alone
    assert module.num_predicted == 14


def test_terms_with_coefficient_0_are_in_neither_the_loss_nor_the_routing_loss(tmp_path):
    module = small_module(temperature=1e-25, balance_coefficient=0.0, z_loss_coefficient=0.0)
    recorder = Recorder()
    options = {"max_steps": 1, "limit_val_batches": 0}
    plain_trainer(tmp_path, [recorder], **options).fit(module, datamodule=FixedBatches([token_batch(0)], []))
    logged = recorder.logged[-1]
    assert logged["train/z_loss"] == math.inf
    assert logged["train/loss"] == logged["train/lm_loss"] and logged["train/routing_loss"] == 0


def test_a_global_balance_loss_with_coefficient_0_is_not_part_of_the_loss(monkeypatch):
    module = small_module(balance_scope="global", balance_coefficient=0.0)
    module._trainer = SimpleNamespace(world_size=2)
    output = module.run_model(token_batch(0))
    monkeypatch.setattr("mom.training.module.balance_loss", lambda *_, **__: torch.tensor(math.inf))
    module._balance_over_ranks(output, token_batch(0))
    assert output.balance_loss == math.inf and torch.equal(output.loss, output.lm_loss)


def test_an_accumulated_step_equals_a_step_on_the_full_batch(tmp_path):
    full = token_batch(0, rows=4)
    halves = [{name: value[rows] for name, value in full.items()} for rows in (slice(2), slice(2, 4))]
    weights = []
    for batches, accumulate in (([full], 1), (halves, 2)):
        # A large eps makes the update linear in the gradient, so that rounding errors stay small.
        module = small_module(optimizer={"eps": 1.0, "lr": 1.0}, balance_coefficient=0.0)
        options = {"max_steps": 1, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
        plain_trainer(tmp_path, [], **options).fit(module, datamodule=FixedBatches(batches, []))
        weights.append(torch.cat([parameter.flatten() for parameter in module.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    assert not torch.allclose(
        weights[0], torch.cat([parameter.flatten() for parameter in small_module().parameters()]), atol=1e-4
    )


def test_validation_counts_every_predicted_token_once(tmp_path):
    batches = [token_batch(0, rows=3), token_batch(1, rows=1, padded=5), token_batch(2, rows=2, length=5)]
    module = small_module().eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            predicted = int((batch["labels"][:, 1:] != -100).sum())
            total += float(module.model(**batch).lm_loss) * predicted
            count += predicted
    trainer = plain_trainer(tmp_path, [])
    trainer.validate(module, datamodule=FixedBatches([], batches), verbose=False)
    found = trainer.callback_metrics
    assert float(found["val/loss"]) == pytest.approx(total / count, rel=1e-6)
    assert float(found["val/perplexity"]) == pytest.approx(math.exp(total / count), rel=1e-5)
    assert float(found["val/bits_per_byte"]) == pytest.approx(total / count / math.log(2) / 2.0, rel=1e-6)


def test_a_loss_that_is_not_a_number_shows(tmp_path):
    module = small_module()
    with torch.no_grad():
        module.model.model.norm.weight.fill_(float("nan"))
    trainer = plain_trainer(tmp_path, [])
    trainer.validate(module, datamodule=FixedBatches([], [token_batch(0)]), verbose=False)
    assert math.isnan(float(trainer.callback_metrics["val/loss"]))


def test_a_checkpoint_is_plain_data_and_rebuilds_the_model(tmp_path):
    module = small_module(top_k=1, router="mlp")
    trainer = plain_trainer(tmp_path, [], max_steps=1, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(module, datamodule=FixedBatches([token_batch(0)], []))
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    config = MoMConfig.from_dict(checkpoint["hyper_parameters"]["model_config"])
    assert (config.top_k, config.router, config.d_model) == (1, "mlp", 16)
    rebuilt = LanguageModelingModule(**checkpoint["hyper_parameters"])
    assert isinstance(rebuilt.model, MoMForCausalLM)
    rebuilt.load_state_dict(checkpoint["state_dict"])
    ids = token_batch(5)["input_ids"]
    assert torch.equal(rebuilt.eval().model(ids).logits, module.eval().model(ids).logits)


def test_records_carry_no_graph(tmp_path):
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [recorder], max_steps=1, limit_val_batches=0)
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(0, padded=3)], []))
    (outputs,) = recorder.train_outputs
    assert outputs["attention_mask"].sum() == 13
    tensors = [tensor for record in outputs["routing"] for pool in record for tensor in pool]
    assert len(tensors) == 4 * 2 * 4
    assert not any(tensor.requires_grad for tensor in tensors)
