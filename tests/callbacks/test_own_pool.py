"""Statistics, figures, and schedules of a model with a third pool of a custom kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mom.callbacks import (
    BalanceBias,
    EffectiveDepth,
    RoutingFigures,
    RoutingPaths,
    RoutingStatistics,
    Schedule,
)
from mom.metrics.names import depth_names, routing_names
from tests.helpers.plugins import THREE_POOLS, causal_conv
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch


@pytest.fixture(autouse=True, scope="module")
def example() -> Iterator[None]:
    with causal_conv():
        yield


def test_every_metric_and_figure_has_the_third_pool(tmp_path):
    module = small_module(pools=THREE_POOLS, skip_rule="first", top_k=2, balance_bias_rate=0.01)
    recorder, statistics = Recorder(), RoutingStatistics()
    growth = Schedule("top_k", start=1, curve="step", last_step=1)
    callbacks = [growth, EffectiveDepth(), statistics, RoutingPaths(1), RoutingFigures(dpi=30), BalanceBias()]
    trainer = plain_trainer(tmp_path, [*callbacks, recorder], max_steps=3, val_check_interval=3)
    validation = [token_batch(seed, padded=seed % 3) for seed in range(20, 23)]
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(3)], validation))

    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    sections = routing_names(THREE_POOLS).values()
    expected = {*depth_names(THREE_POOLS), *(name for names in sections for name in names)}
    expected -= {f"routing/{pool}/agreement" for pool in THREE_POOLS}  # is logged directly
    assert expected <= set(logged) and {f"val/{name}" for name in expected} <= set(logged)
    assert set(statistics.history) == {"steps", *THREE_POOLS}
    assert len(list((tmp_path / "figures").glob("*.png"))) == 6

    config, steps, tokens = module.model.config, 0, 0
    for output in recorder.validation_outputs:
        real = output["attention_mask"]
        tokens += int(real.sum())
        took = torch.stack([choice.took_module for record in output["routing"] for choice in record])
        steps += int((took & real).sum())
    assert logged["val/depth/effective"] == pytest.approx(config.fixed_depth + steps / tokens / 3, rel=1e-6)
    per_pool = [logged[f"val/depth/effective_{pool}"] for pool in THREE_POOLS]
    assert logged["val/depth/effective"] == pytest.approx(sum(per_pool) / 3, rel=1e-6)
