"""A window is a logged optimizer step with all its micro-batches, or a validation."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import EffectiveDepth, RoutingStatistics
from mom.metrics.depth import depth_metrics, depth_sums
from mom.metrics.routing import routing_metrics, routing_sums
from mom.metrics.sums import add, collect
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch


def expected(outputs: list[dict], config) -> dict[str, float]:
    """Compute the metrics of all outputs together."""
    depth, pools = None, {"attention": None, "ffn": None}
    for output in outputs:
        measured = depth_sums(
            output["routing"],
            output["attention_mask"],
            ("attention", "ffn"),
        )
        depth = add(depth, measured)
        for pool in pools:
            choices = [getattr(record, pool) for record in output["routing"]]
            sums = routing_sums(choices, output["attention_mask"], num_stages=1)
            pools[pool] = add(pools[pool], sums)
    fixed = config.graph_depth - config.num_rounds
    metrics = depth_metrics(
        collect(depth), ("attention", "ffn"), fixed_depth=fixed, graph_depth=config.graph_depth
    )
    found = {f"depth/{name}": value for name, value in metrics.items()}
    for pool, sums in pools.items():
        found |= {f"routing/{pool}/{name}": value for name, value in routing_metrics(collect(sums)).items()}
    return found


def test_a_training_window_is_a_logged_optimizer_step(tmp_path):
    batches = [token_batch(seed, rows=1 + seed % 3, padded=seed % 4) for seed in range(9)]
    module = small_module(skip_rule="first")
    recorder = Recorder()
    callbacks = [EffectiveDepth(), RoutingStatistics(), recorder]
    options = {"max_steps": 3, "accumulate_grad_batches": 3, "log_every_n_steps": 2, "limit_val_batches": 0}
    plain_trainer(tmp_path, callbacks, **options).fit(module, datamodule=FixedBatches(batches, []))
    assert not any("depth/effective" in logged for logged in recorder.logged[:5]), "step 1 does not log"
    for step, outputs in ((2, slice(3, 6)), (3, slice(6, 9))):
        logged = recorder.logged[3 * step - 1]
        wanted = expected(recorder.train_outputs[outputs], module.model.config)
        assert wanted["depth/effective_std"] > 0
        assert {name: logged[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


def test_flops_are_of_the_modules_that_ran_and_of_real_tokens(tmp_path):
    validation = [token_batch(seed, rows=2, padded=padded) for seed, padded in ((1, 3), (2, 0))]
    module = small_module(skip_rule="first")
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [EffectiveDepth(), recorder])
    trainer.validate(module, datamodule=FixedBatches([], validation), verbose=False)
    config, width = module.model.config, module.model.config.d_model
    total = nominal = tokens = 0
    for output in recorder.validation_outputs:
        for row, column in output["attention_mask"].nonzero().tolist():
            length = int(output["attention_mask"][row].sum())
            tokens += 1
            fixed = config.fixed_depth * (8 * width**2 + 16 * width**2) + 2 * width * config.vocab_size
            fixed += config.graph_depth * 4 * width * (length + 1) / 2
            state = config.router_dim
            fixed += 2 * config.num_rounds * 2 * (3 * state * width + 3 * state**2 + state * 4)
            took = [
                sum(int(choice) < 3 for choice in getattr(record, pool).selected[row, column])
                for pool in ("attention", "ffn")
                for record in output["routing"]
            ]
            rounds = config.num_rounds
            total += fixed + 8 * width**2 * sum(took[:rounds]) + 16 * width**2 * sum(took[rounds:])
            nominal += fixed + 24 * width**2 * 2 * rounds
    found = trainer.callback_metrics
    assert float(found["val/compute/flops_per_token"]) == pytest.approx(total / tokens, rel=1e-6)
    assert float(found["val/compute/share_of_nominal"]) == pytest.approx(total / nominal, rel=1e-6)
    assert total < nominal


class Gradients(Callback):
    """Records the routers' gradients at every optimizer step, before clipping."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = pl_module.model.named_parameters()
        squares = [(parameter.grad**2).sum() for name, parameter in named if "stages.0.ffn.router." in name]
        self.norms.append(float(sum(squares)) ** 0.5)


def test_the_gradient_norm_is_that_of_the_optimizer_step_before_clipping(tmp_path):
    module, gradients, recorder = small_module(), Gradients(), Recorder()
    options = {"max_steps": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 1e-3}
    callbacks = [RoutingStatistics(), gradients, recorder]
    batches = [token_batch(seed) for seed in range(4)]
    trainer = plain_trainer(tmp_path, callbacks, limit_val_batches=0, **options)
    trainer.fit(module, datamodule=FixedBatches(batches, []))
    found = [logged["routing/ffn/gradient_norm"] for logged in recorder.logged[1::2]]
    assert found == pytest.approx(gradients.norms, rel=1e-5)
    assert min(found) > 1e-3


def test_the_history_has_every_logged_step_and_survives_a_resume(tmp_path):
    statistics, recorder = RoutingStatistics(), Recorder()
    batches = [token_batch(seed, padded=2) for seed in range(4)]
    options = {"max_steps": 4, "log_every_n_steps": 2, "limit_val_batches": 0}
    trainer = plain_trainer(tmp_path, [statistics, recorder], **options)
    trainer.fit(small_module(), datamodule=FixedBatches(batches, []))
    again = RoutingStatistics()
    again.load_state_dict(statistics.state_dict())
    assert again.history["steps"].tolist() == [2, 4]
    output = recorder.train_outputs[3]
    chosen = torch.cat([record.ffn.selected[output["attention_mask"]] for record in output["routing"]])
    assert again.history["ffn"][1, 0].tolist() == torch.bincount(chosen.flatten(), minlength=4).tolist()


def test_a_validation_weighs_every_token_once(tmp_path):
    validation = [token_batch(seed, rows=1 + seed % 3, padded=seed % 5) for seed in range(10, 14)]
    module = small_module(skip_rule="first")
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [EffectiveDepth(), RoutingStatistics(), recorder])
    trainer.validate(module, datamodule=FixedBatches([], validation), verbose=False)
    wanted = expected(recorder.validation_outputs, module.model.config)
    found = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in wanted}
    assert found == pytest.approx(wanted, rel=1e-6)
    assert "depth/effective" not in trainer.callback_metrics


def test_a_plain_model_logs_its_graph_depth_and_no_routing(tmp_path):
    module = small_module(num_stages=0, num_bottom_blocks=3)
    trainer = plain_trainer(tmp_path, [EffectiveDepth(), RoutingStatistics()])
    trainer.validate(module, datamodule=FixedBatches([], [token_batch(0, padded=2)]), verbose=False)
    assert trainer.callback_metrics["val/depth/effective"] == module.model.config.graph_depth == 4
    assert not any("routing" in name for name in trainer.callback_metrics)


def test_entropy_is_omitted_if_scores_are_not_probabilities(tmp_path):
    module = small_module(score_function="identity")
    trainer = plain_trainer(tmp_path, [RoutingStatistics()])
    trainer.validate(module, datamodule=FixedBatches([], [token_batch(0)]), verbose=False)
    assert "val/routing/ffn/skip_rate" in trainer.callback_metrics
    assert "val/routing/ffn/entropy" not in trainer.callback_metrics
