"""Phases: their directories, and the weights passed from one to the next."""

from __future__ import annotations

import json

import pytest
import torch

from mom.errors import UsageError
from mom.interop import plain_config
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training import phases
from mom.training.phases import finished_results, initialize_from, run_phase
from tests.helpers.models import small_config, small_model, tokens
from tests.helpers.runs import tiny_request


def test_weights_are_taken_over_and_what_has_none_comes_from_the_request():
    start = small_model(temperature=0.5, top_k=2)
    model = initialize_from(start, small_config(temperature=0.25, top_k=1)).eval()
    assert (model.config.temperature, model.config.top_k) == (0.25, 1)
    same = initialize_from(start, start.config).eval()
    ids = tokens(2, 8)
    assert torch.equal(same(ids).logits, start(ids).logits)
    assert not torch.equal(model(ids).logits, start(ids).logits)


def test_a_plain_model_is_upcycled_if_the_request_has_stages():
    config = small_config()
    start = MoMForCausalLM(plain_config(config))
    model = initialize_from(start, config)
    assert model.config.num_stages == 1
    pool = model.model.stages[0].attention.pool
    assert torch.equal(pool.qkv_bias[1], start.model.bottom[2].attention.qkv.bias)


@pytest.mark.parametrize(
    "changes", [{"d_model": 32}, {"vocab_size": 99}, {"router": "mlp"}, {"num_stages": 0}]
)
def test_weights_of_another_architecture_are_rejected_by_name(changes):
    with pytest.raises(UsageError) as raised:
        initialize_from(small_model(), small_config(**changes))
    name = next(iter(changes))
    assert str(raised.value).startswith("init has weights of a model with ")
    assert f"{name}={changes[name]}" in str(raised.value)
    assert f"{name}={getattr(small_config(), name)}" in str(raised.value)


class FakeData:
    validation_bytes_per_token = 1.0


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "succeeded"), (RuntimeError("no space"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_phase_folder_tells_how_it_ended(tmp_path, monkeypatch, error, state):
    def fit(*_, **__):
        status = json.loads((tmp_path / "run" / "plain" / "status.json").read_text())
        assert status["state"] == "running"
        if error is not None:
            raise error
        return {"val/loss": 1.5}

    monkeypatch.setattr(phases, "fit_phase", fit)
    run = RunDirectory(tmp_path / "run")
    assert finished_results(run, "plain") is None
    arguments = (tiny_request(tmp_path), small_model(), FakeData(), run)
    if error is None:
        assert run_phase(*arguments, phase="plain", max_steps=2) == {"val/loss": 1.5}
        assert finished_results(run, "plain") == {"val/loss": 1.5}
    else:
        with pytest.raises(type(error)):
            run_phase(*arguments, phase="plain", max_steps=2)
        assert finished_results(run, "plain") is None
    assert json.loads((tmp_path / "run" / "plain" / "status.json").read_text())["state"] == state
    assert "max_steps: 2" in (tmp_path / "run" / "plain" / "config.yaml").read_text()
