"""K grows at the steps given, in the records, in the weights' rule and in validations."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback

from mom.callbacks import TopKGrowth
from mom.errors import RequestError
from tests.helpers.models import small_config
from tests.helpers.runs import (
    CALLBACKS,
    FixedBatches,
    Recorder,
    plain_trainer,
    small_module,
    tiny_request,
    token_batch,
)

GROWING = {"_target_": "mom.callbacks.TopKGrowth"}


class Rules(Callback):
    """Keeps whether each micro-batch's weights are made to sum to 1."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.seen.append(pl_module.model.model.stages[0].attention.router.normalize)


@pytest.mark.parametrize(
    ("top_k", "at", "expected"),
    [(3, [1, 3], [1, 2, 2, 3]), (2, [2], [1, 1, 2, 2]), ("all", [2], [3, 3, 4, 4]), (2, None, [2] * 4)],
)
def test_each_step_has_its_k(tmp_path, top_k, at, expected):
    module, recorder, rules = small_module(top_k=top_k), Recorder(), Rules()
    trainer = plain_trainer(
        tmp_path,
        [TopKGrowth(at), recorder, rules],
        max_steps=4,
        accumulate_grad_batches=2,
        val_check_interval=2,
        limit_val_batches=1,
    )
    batches = [token_batch(seed) for seed in range(8)]
    trainer.fit(module, datamodule=FixedBatches(batches, batches[:1]))
    found = [out["routing"][0].ffn.selected.shape[-1] for out in recorder.train_outputs]
    assert found == [k for k in expected for _ in range(2)]
    assert [out["routing"][0].ffn.selected.shape[-1] for out in recorder.validation_outputs] == expected
    assert rules.seen == [k > 1 for k in found]


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ([0], r"at: \[0\]; integers of at least 1, or null"),
        ([3, 2], r"at: \[3, 2\]; steps in ascending order"),
        ([2, 2], r"at: \[2, 2\]; steps in ascending order"),
    ],
)
def test_steps_that_cannot_be_are_refused(at, said):
    with pytest.raises(ValueError, match=said):
        TopKGrowth(at)


def test_steps_that_do_not_fit_the_model_or_the_training_are_refused():
    with pytest.raises(ValueError, match=r"at: \[1, 2\]; at most 1 steps, for top_k 2"):
        TopKGrowth([1, 2]).check_fits(small_config(), 10)
    with pytest.raises(ValueError, match=r"at: \[10\]; steps before the last one, 10"):
        TopKGrowth([10]).check_fits(small_config(), 10)
    TopKGrowth([10]).check_fits(small_config(num_stages=0), 5)


def test_a_request_is_refused_before_anything_is_trained(tmp_path):
    config = tiny_request(tmp_path, callbacks=CALLBACKS | {"top_k_growth": GROWING | {"at": [6]}})
    with pytest.raises(RequestError) as error:
        config.check_buildable()
    assert str(error.value) == r"callbacks.top_k_growth.at: [6]; steps before the last one, 6"
