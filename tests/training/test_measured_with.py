"""A checkpoint holds the values of scheduled options, so that it reproduces the validation it was saved after."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from mom.callbacks import Schedule
from mom.interop import load_classifier, load_model
from mom.training.checkpoint import check_architecture, read_checkpoint
from tests.helpers.runs import FixedBatches, plain_trainer, small_module, token_batch

VALIDATION = [token_batch(seed, rows=4) for seed in range(90, 93)]
SCHEDULES = {
    "temperature": {"start": 3.0, "last_step": 3},
    "top_k": {"start": 1, "curve": "step", "last_step": 3},
    "num_rounds": {"start": 1, "last_step": 3},
    "prior_strength": {"end": 0.0},
    "gumbel_noise": {"start": 2.0},
}
POOLS = {"attention": {"top_k": 3}, "ffn": {"top_k": 2}}


class SaveAll(Callback):
    """Saves a checkpoint after each validation, and records its loss."""

    def __init__(self, folder) -> None:
        self.folder, self.found = folder, {}

    def on_validation_end(self, trainer, pl_module) -> None:
        path = self.folder / f"{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        self.found[path] = float(trainer.callback_metrics["val/loss"])


def train(tmp_path, schedules, **changes):
    """Train for four steps with a validation after each; return checkpoints with their losses."""
    module, saved = small_module(**({"num_rounds": 3, "router_prior": "looped"} | changes)), SaveAll(tmp_path)
    callbacks = [*(Schedule(name, **SCHEDULES[name]) for name in schedules), saved]
    trainer = plain_trainer(tmp_path, callbacks, max_steps=4, val_check_interval=1)
    trainer.fit(module, datamodule=FixedBatches([token_batch(seed) for seed in range(4)], VALIDATION))
    return saved.found


def validation_loss(model) -> float:
    with torch.no_grad():
        losses = [model.eval()(**batch, output_logits=False).lm_loss for batch in VALIDATION]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("schedules", "changes"),
    [
        (["temperature"], {}),
        (["top_k"], {}),
        (["top_k"], {"top_k": "all"}),
        (["top_k"], {"pools": POOLS}),
        (["top_k"], {"top_k": 3, "ffn_top_k": 2}),
        (["num_rounds"], {}),
        (["num_rounds"], {"num_stages": 2, "router": "random", "router_prior": "none"}),
        (["prior_strength", "gumbel_noise"], {}),
        (list(SCHEDULES), {}),
    ],
)
def test_a_checkpoint_reproduces_its_validation_loss_loaded_and_exported(tmp_path, schedules, changes):
    found = train(tmp_path, schedules, **changes)
    assert len(found) == 4
    for path, loss in found.items():
        model = load_model(path)
        assert validation_loss(model) == pytest.approx(loss, abs=1e-6), path
        model.save_pretrained(tmp_path / "exported")
        assert validation_loss(load_model(tmp_path / "exported")) == pytest.approx(loss, abs=1e-6), path


def test_training_resumes_with_the_configured_options(tmp_path):
    first, *_ = train(tmp_path, SCHEDULES)
    configured = small_module(num_rounds=3, router_prior="looped").model.config
    check_architecture(read_checkpoint(first), configured.to_dict())
    assert load_model(first, as_measured=False).config.as_mapping() == configured.as_mapping()
    assert load_classifier(first, ["a", "b"]).config.num_rounds == 1
    assert load_classifier(first, ["a", "b"], as_measured=False).config.num_rounds == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("num_rounds", {"ffn_schedule": "grouped"}, "num_rounds.* cannot be combined with a grouped pool"),
        (
            "num_rounds",
            {"settle_steps": 9, "top_k": 1, "router": "linear"},
            r"num_rounds cannot be combined with router\.settle_steps: choices settle per round",
        ),
        ("top_k", {"top_k": "all", "schedule": "layerwise"}, "top_k .*must be between 1 and 2"),
    ],
)
def test_values_that_a_checkpoint_could_not_hold_are_rejected(name, changes, message):
    config = small_module(**changes).model.config
    with pytest.raises(ValueError, match=message):
        Schedule(name, 1 if name == "num_rounds" else 3, last_step=3).check_fits(config, 4)
