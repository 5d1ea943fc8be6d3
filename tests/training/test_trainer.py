"""Building Lightning's Trainer and its callbacks from a request."""

from __future__ import annotations

from lightning.pytorch.plugins.environments import SLURMEnvironment

from mom.callbacks import FinalValidation, LastCheckpoint, StepProgressBar
from mom.training import trainer
from mom.training.trainer import build_callbacks
from tests.helpers.runs import tiny_request


def test_callbacks_that_lightning_would_reject_are_omitted(tmp_path):
    monitor = {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"}
    bar = {"_target_": "mom.callbacks.StepProgressBar"}
    config = tiny_request(tmp_path, callbacks={"learning_rate_monitor": monitor, "bar": bar})
    kinds = [type(callback).__name__ for callback in build_callbacks(config, "mom", has_loggers=False)]
    assert "LearningRateMonitor" not in kinds
    assert "StepProgressBar" not in kinds
    config = tiny_request(
        tmp_path,
        callbacks={"learning_rate_monitor": monitor, "bar": bar},
        trainer={"enable_progress_bar": True},
    )
    callbacks = build_callbacks(config, "mom", has_loggers=True)
    assert "LearningRateMonitor" in [type(callback).__name__ for callback in callbacks]
    assert [callback._name for callback in callbacks if isinstance(callback, StepProgressBar)] == ["mom"]
    assert isinstance(callbacks[-1], FinalValidation)
    assert not any(isinstance(callback, LastCheckpoint) for callback in callbacks)


def test_under_slurm_lightning_does_not_requeue_by_itself(tmp_path, monkeypatch):
    def environment():
        built = trainer.build_trainer(tiny_request(tmp_path), tmp_path, 1, [], [])
        return built._accelerator_connector.cluster_environment

    assert not isinstance(environment(), SLURMEnvironment)
    for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES", "JOB_ID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    slurm = environment()
    assert isinstance(slurm, SLURMEnvironment)
    assert not slurm.auto_requeue
