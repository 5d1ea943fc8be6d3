"""Tokens per second, measured with a fake clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import ThroughputMonitor, throughput
from mom.cost.estimate import flops_per_token
from tests.helpers.runs import FixedBatches, Recorder, plain_trainer, small_module, token_batch


class Clock(Callback):
    """A fake clock: a training batch takes ``step`` seconds (the first 100), a validation 1000."""

    def __init__(self, step: float) -> None:
        self.now, self.step, self.first = 0.0, step, True

    def on_train_batch_start(self, *_) -> None:
        self.now += 100 if self.first else self.step
        self.first = False

    def on_validation_end(self, *_) -> None:
        self.now += 1000


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(step=2.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    # By that clock, a matmul would take no time.
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: (1e6, "set by the test"))
    return clock


def test_the_rate_excludes_validation_and_the_first_step(tmp_path, clock):
    batches = [token_batch(seed) for seed in range(8)]  # 16 tokens each, 2 seconds each
    monitor, recorder = ThroughputMonitor(), Recorder()
    options = {
        "max_steps": 4,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 2,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
    }
    trainer = plain_trainer(tmp_path, [monitor, clock, recorder], **options)
    trainer.fit(small_module(), datamodule=FixedBatches(batches, [token_batch(0)]))
    assert "throughput/tokens" not in recorder.logged[1]
    assert recorder.logged[3]["throughput/tokens"] == 64
    assert recorder.logged[3]["throughput/tokens_per_second"] == pytest.approx(64 / 106)
    assert recorder.logged[7]["throughput/tokens"] == 128
    # The batch after the validation restarts the clock before the fake clock advances.
    assert recorder.logged[7]["throughput/tokens_per_second"] == pytest.approx(64 / 8)
    assert monitor.tokens_per_second == pytest.approx(96 / 12)


def test_a_resume_continues_counting_tokens_and_restarts_rates(tmp_path):
    first, second = ThroughputMonitor(), ThroughputMonitor()
    assert first.tokens_per_second is None
    trainer = plain_trainer(tmp_path, [first], max_steps=3, limit_val_batches=0)
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(0)] * 3, []))
    assert first.state_dict()["tokens"] == 48
    second.load_state_dict(first.state_dict())
    recorder = Recorder()
    trainer = plain_trainer(tmp_path, [second, recorder], max_steps=1, limit_val_batches=0)
    trainer.fit(small_module(), datamodule=FixedBatches([token_batch(0)], []))
    assert recorder.logged[0]["throughput/tokens"] == 64
    assert second.tokens_per_second is not None


def test_all_ranks_count(monkeypatch):
    monitor = ThroughputMonitor()
    trainer = SimpleNamespace(
        world_size=3,
        global_step=0,
        max_steps=9,
        log_every_n_steps=5,
        precision="32-true",
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    monitor.on_train_start(trainer, None)
    monitor.on_train_batch_start(trainer, None)
    trainer.global_step = 1
    monitor.on_train_batch_end(trainer, None, None, token_batch(0))
    assert monitor.state_dict()["tokens"] == 48


def test_mfu_is_useful_flops_over_the_peak(tmp_path, clock):
    module, monitor, recorder = small_module(), ThroughputMonitor(), Recorder()
    trainer = plain_trainer(tmp_path, [monitor, clock, recorder], max_steps=3, limit_val_batches=0)
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(3)], []))
    config, logged = module.model.config, recorder.logged[2]
    used = [
        [
            (getattr(record, pool).selected < 3).sum(-1).float().mean()
            for record in recorder.train_outputs[2]["routing"]
        ]
        for pool in ("attention", "ffn")
    ]
    usage = dict(zip(("attention", "ffn"), (float(sum(counts)) / 4 for counts in used), strict=True))
    assert usage["attention"] < 2  # SKIP was chosen somewhere
    flops = 3 * flops_per_token(config, 8, usage).total
    assert logged["throughput/flops"] == pytest.approx(flops * 16 / 2, rel=1e-5)
    assert logged["throughput/mfu"] == pytest.approx(logged["throughput/flops"] / 1e6)
    assert monitor.mfu == pytest.approx(flops * 8 / 1e6, rel=1e-5)


def test_each_sequence_counts_with_its_own_length(tmp_path, clock):
    module, recorder = small_module(num_stages=0), Recorder()
    options = {"max_steps": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer = plain_trainer(tmp_path, [ThroughputMonitor(), clock, recorder], **options)
    trainer.fit(module, datamodule=FixedBatches([token_batch(0, length=4), token_batch(0, length=16)], []))
    flops = sum(6 * length * flops_per_token(module.model.config, length).total for length in (4, 16))
    assert recorder.logged[1]["throughput/flops"] == pytest.approx(flops / 102, rel=1e-5)


def test_training_flops_add_up_over_logged_steps_and_a_resume(tmp_path):
    lengths = [4, 16, 8, 8, 4]
    batches = [token_batch(seed, length=length) for seed, length in enumerate(lengths)]
    module = small_module(num_stages=0)  # the cost depends only on the position, not on the routing
    options = {"log_every_n_steps": 2, "limit_val_batches": 0}

    def trained(monitor, batches, max_steps):
        trainer = plain_trainer(tmp_path, [monitor], max_steps=max_steps, **options)
        trainer.fit(module, datamodule=FixedBatches(batches, []))
        return monitor

    total = trained(ThroughputMonitor(), batches, 5).training_flops
    # The mean length of the tokens between two logged steps is exact, as FLOPs grow linearly with it.
    costs = [2 * length * 3 * flops_per_token(module.model.config, length).total for length in lengths]
    assert total == pytest.approx(sum(costs), rel=1e-9)

    first = ThroughputMonitor()
    first.load_state_dict({"tokens": 0, "flops": 0.0, "pending": (0, 0)})
    stopped = plain_trainer(tmp_path, [first, StopsAfter(3)], max_steps=5, **options)
    stopped.fit(module, datamodule=FixedBatches(batches, []))
    assert first.training_flops == pytest.approx(sum(costs[:2]), rel=1e-9)  # the third step was not logged
    second = ThroughputMonitor()
    second.load_state_dict(first.state_dict())
    assert trained(second, batches[3:], 2).training_flops == pytest.approx(sum(costs), rel=1e-9)


class StopsAfter(Callback):
    """Ends training after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.global_step >= self.steps
