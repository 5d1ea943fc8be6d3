"""Runs with each optimizer, clipping, and averaged weights: they train, and resume bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from mom.data.language_modeling import LanguageModelingDataModule
from mom.interop import load_model
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training import fit
from mom.training.checkpoint import read_checkpoint
from mom.training.fit import fit_phase
from mom.training.optimizer import learning_rate_factor
from tests.helpers.runs import tiny_request

AVERAGE = {"_target_": "mom.callbacks.WeightAverage", "decay": 0.5}
ONE_CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": 6}
RUNS: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": {"_target_": "torch.optim.Muon", "schedule": "wsd", "decay_fraction": 0.5}},
    "adafactor": {
        "optimizer": {"_target_": "torch.optim.Adafactor", "eps": [None, 1e-3], "schedule": "linear"}
    },
    "sgd": {
        "optimizer": {
            "_target_": "torch.optim.SGD",
            "momentum": 0.9,
            "warmup_steps": 0,
            "scheduler": ONE_CYCLE,
            "router_lr_multiplier": 0.5,
        },
    },
    "clipped": {"trainer": {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}},
    "averaged": {"callbacks": {"weight_average": AVERAGE}},
}


def train(folder: Path, name: str, changes: dict[str, Any], resume: Path | None = None) -> dict[str, float]:
    """Train one phase of the tiny request in ``folder/name``."""
    config = tiny_request(folder, **changes)
    config.check_buildable()
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    seed_everything(config.seed, verbose=False)
    model = MoMForCausalLM(config.model_config(data.vocab_size))
    point = None if resume is None else read_checkpoint(resume)
    directory = RunDirectory(folder / name)
    return fit_phase(
        config, model, data, directory, phase="mom", max_steps=config.trainer.max_steps, resume=point
    )


def state(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(found: Any, wanted: Any, place: str) -> None:
    """Compare nested plain data bit for bit."""
    assert type(found) is type(wanted), place
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), place
        for name, value in wanted.items():
            assert_same(found[name], value, f"{place}.{name}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), place
        for index, value in enumerate(wanted):
            assert_same(found[index], value, f"{place}[{index}]")
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), place
    else:
        assert found == wanted, place


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_bit_for_bit(tmp_path, name):
    results = train(tmp_path, "reference", RUNS[name])
    half = tmp_path / "reference" / "checkpoints" / "previous.ckpt"
    again = train(tmp_path, "resumed", RUNS[name], resume=half)
    for metric, value in results.items():
        assert metric.startswith("throughput") or again[metric] == value, metric
    wanted, found = (state(tmp_path / run, "last") for run in ("reference", "resumed"))
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert_same(found.get(key), wanted.get(key), key)
    assert wanted["global_step"] == 6


class Weights(Callback):
    """Records the weights after each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.steps.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


@pytest.mark.parametrize("decay", [0.5, None])
def test_the_average_is_validated_saved_loaded_and_left_in_the_model(tmp_path, monkeypatch, decay):
    recorder, build = Weights(), fit.build_callbacks
    monkeypatch.setattr(fit, "build_callbacks", lambda *given: [recorder, *build(*given)])
    node = AVERAGE | {"decay": decay, "first_step": 1}
    results = train(tmp_path, "run", {"callbacks": {"weight_average": node}})
    checkpoint = state(tmp_path / "run", "last")
    for name, weight in recorder.steps[-1].items():
        assert torch.equal(checkpoint["current_model_state"][name], weight)
        # The first update replaces the initial weights.
        average = recorder.steps[1][name]
        for count, step in enumerate(recorder.steps[2:], start=1):
            kept = decay if decay is not None else count / (count + 1)
            average = kept * average + (1 - kept) * step[name]
        torch.testing.assert_close(checkpoint["state_dict"][name], average, rtol=0, atol=1e-5)
    config = tiny_request(tmp_path)
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    loaded = load_model(str(tmp_path / "run" / "checkpoints" / "last.ckpt")).eval()
    batches = [batch for _, batch in zip(range(2), data.val_dataloader(), strict=False)]
    with torch.no_grad():
        losses = [float(loaded(**batch).lm_loss) for batch in batches]
    assert sum(losses) / len(losses) == pytest.approx(results["val/loss"], abs=1e-5)


def test_a_skipped_step_does_not_count_in_the_average(tmp_path, monkeypatch):
    class Break(Callback):
        def on_after_backward(self, trainer, pl_module) -> None:
            if trainer.global_step == 2:
                next(pl_module.parameters()).grad.fill_(float("nan"))

    recorder, build = Weights(), fit.build_callbacks
    monkeypatch.setattr(fit, "build_callbacks", lambda *given: [Break(), recorder, *build(*given)])
    changes = {"callbacks": {"weight_average": AVERAGE}, "trainer": {"on_nonfinite": "skip", "max_steps": 4}}
    train(tmp_path, "run", changes)
    average = recorder.steps[0]
    for step in (recorder.steps[1], recorder.steps[3]):
        average = {name: 0.5 * average[name] + 0.5 * step[name] for name in average}
    found = state(tmp_path / "run", "last")["state_dict"]
    for name, weight in average.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def test_a_one_cycle_keeps_the_routers_multiple(tmp_path):
    train(tmp_path, "run", RUNS["sgd"] | {"trainer": {"max_steps": 2}})
    groups = {
        group["name"]: group
        for group in state(tmp_path / "run", "last")["optimizer_states"][0]["param_groups"]
    }
    assert groups["matrices"]["max_lr"] == 0.1
    assert groups["router_matrices"]["lr"] == pytest.approx(0.5 * groups["matrices"]["lr"])
    assert groups["vectors"]["weight_decay"] == 0.0 < groups["matrices"]["weight_decay"]


def test_linear_falls_evenly_and_wsd_is_stable_before_its_decay():
    options = {"warmup_steps": 2, "max_steps": 12, "min_lr_ratio": 0.1}
    linear = [learning_rate_factor(step, schedule="linear", **options) for step in range(14)]
    assert linear[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert linear[7] == pytest.approx(0.55)
    assert linear[12:] == pytest.approx([0.1, 0.1])
    wsd = [learning_rate_factor(step, schedule="wsd", decay_fraction=0.25, **options) for step in range(14)]
    assert wsd[2:10] == [1.0] * 8
    assert wsd[10:] == pytest.approx([0.7, 0.4, 0.1, 0.1])


@pytest.mark.parametrize(
    ("algorithm", "precision"), [("value", "bf16-mixed"), ("norm", "bf16-mixed"), ("value", "32-true")]
)
def test_gradients_are_clipped_by_value_or_by_norm(tmp_path, monkeypatch, algorithm, precision):
    class Largest(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                values.append(max(float(g.abs().max()) for g in gradients))
                norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    values: list[float] = []
    norms: list[float] = []
    build = fit.build_callbacks
    monkeypatch.setattr(fit, "build_callbacks", lambda *given: [Largest(), *build(*given)])
    options = {
        "gradient_clip_val": 1e-3,
        "gradient_clip_algorithm": algorithm,
        "precision": precision,
        "max_steps": 2,
    }
    train(tmp_path, "run", {"trainer": options})
    clipped, other = (values, norms) if algorithm == "value" else (norms, values)
    assert max(clipped) == pytest.approx(1e-3, rel=1e-2)
    assert max(other) > 2e-3 if algorithm == "value" else max(other) < 1e-3
